"""Opening files that users bring: whatever is wrong with one is a `UserError` that names it.

`setting` is the flag or config field that led to the file; it starts the message.
"""

import json
import os
import pathlib
import stat
from typing import Any

from dgia_jax.errors import UserError

_MAX_JSON_BYTES = 64 * 2**20
_GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def local_path(path: str | os.PathLike, setting: str) -> pathlib.Path:
  """A path on this machine, with `~` expanded.

  Raises:
    UserError: it names a bucket or another remote place, where a local folder would be created.
  """
  text = os.fspath(path)
  if "://" in text:
    raise UserError(
      f"{setting}={text}: remote paths are not supported here; copy the files to this machine, or"
      " mount the bucket (gcsfuse for Google Cloud), and give that folder"
    )
  return pathlib.Path(text).expanduser()


def check_regular(path: pathlib.Path, setting: str) -> None:
  """Raises UserError unless `path` is a regular file (or a link to one) with content of its own.

  Opening anything else could block for ever (a FIFO) or never end (a device).
  """
  try:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
      raise UserError(f"{setting}: {path} is not a regular file; give the file itself")
    with path.open("rb") as file:
      start = file.read(len(_GIT_LFS_POINTER))
  except FileNotFoundError as error:
    raise UserError(f"{setting}: {path} is missing") from error
  except (OSError, ValueError) as error:  # ValueError: a null character in the name
    raise UserError(f"{setting}: {path} cannot be read ({error})") from error
  if start == _GIT_LFS_POINTER:
    raise UserError(
      f"{setting}: {path} is only a Git LFS pointer to the file; run `git lfs pull` in its folder"
    )


def read_text(path: pathlib.Path | str, setting: str) -> str:
  """Returns the text of a UTF-8 file; raises UserError if it cannot be read as such."""
  try:
    return pathlib.Path(path).expanduser().read_text(encoding="utf-8")
  except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a null character in the name
    raise UserError(f"{setting}={path}: cannot be read ({error})") from error


def read_json(path: pathlib.Path, setting: str) -> dict[str, Any]:
  """Returns the JSON object a file holds.

  Raises:
    UserError: the file is missing, too large or damaged, or holds no JSON object.
  """
  check_regular(path, setting)
  try:
    if path.stat().st_size > _MAX_JSON_BYTES:
      raise UserError(f"{setting}: {path} is too large for a JSON file of a model")
    content = json.loads(path.read_bytes())
  except OSError as error:
    raise UserError(f"{setting}: {path} cannot be read ({error})") from error
  except (ValueError, RecursionError) as error:  # ValueError: also a number of 4,300 digits
    raise UserError(f"{setting}: {path} is damaged: not JSON ({error})") from error
  if not isinstance(content, dict):
    raise UserError(f"{setting}: {path} does not hold a JSON object")
  return content
