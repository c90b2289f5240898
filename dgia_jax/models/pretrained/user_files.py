"""Opening files that users bring: whatever is wrong with one is a `UserError` that names it."""

import json
import pathlib
import stat
from typing import Any

from dgia_jax.errors import UserError

_MAX_JSON_BYTES = 64 * 2**20
_GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_regular(path: pathlib.Path) -> None:
  """Raises UserError unless `path` is a regular file (or a link to one) with content of its own.

  Opening anything else could block for ever (a FIFO) or never end (a device).
  """
  try:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
      raise UserError(f"pretrained: {path} is not a regular file; give the file itself")
    with path.open("rb") as file:
      start = file.read(len(_GIT_LFS_POINTER))
  except FileNotFoundError as error:
    raise UserError(f"pretrained: {path} is missing") from error
  except OSError as error:
    raise UserError(f"pretrained: {path} cannot be read ({error})") from error
  if start == _GIT_LFS_POINTER:
    raise UserError(
      f"pretrained: {path} is only a Git LFS pointer to the file; run `git lfs pull` in its folder"
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON object a file holds.

  Raises:
    UserError: the file is missing, too large or damaged, or holds no JSON object.
  """
  check_regular(path)
  try:
    if path.stat().st_size > _MAX_JSON_BYTES:
      raise UserError(f"pretrained: {path} is too large for a JSON file of a model")
    content = json.loads(path.read_bytes())
  except OSError as error:
    raise UserError(f"pretrained: {path} cannot be read ({error})") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"pretrained: {path} is no JSON ({error})") from error
  if not isinstance(content, dict):
    raise UserError(f"pretrained: {path} does not hold a JSON object")
  return content
