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


def expanded(path: str | os.PathLike, setting: str) -> pathlib.Path:
  """A path with `~` expanded.

  Raises:
    UserError: it starts with `~name`, and there is no user of this name.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise UserError(
      f"{setting}={path}: no home folder is known for {pathlib.Path(path).parts[0]}; give the whole"
      " path"
    ) from error


def exists(path: str | os.PathLike, setting: str) -> bool:
  """Whether there is a file or folder at a path.

  Raises:
    UserError: the name is too long, or its folder may not be read.
  """
  try:
    return pathlib.Path(path).exists()
  except OSError as error:
    raise UserError(f"{setting}={path}: cannot be read ({error.strerror})") from error


def local_path(path: str | os.PathLike, setting: str) -> pathlib.Path:
  """A path on this machine, with `~` expanded.

  Raises:
    UserError: it names a bucket or another remote place, where a local folder would be created, or
      the home of an unknown user.
  """
  text = os.fspath(path)
  if "://" in text:
    raise UserError(
      f"{setting}={text}: remote paths are not supported here; copy the files to this machine, or"
      " mount the bucket (gcsfuse for Google Cloud), and give that folder"
    )
  return expanded(text, setting)


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
  """The text of a UTF-8 file, without the byte order mark that some editors put first.

  Raises:
    UserError: the file cannot be read, or is not UTF-8.
  """
  path = expanded(path, setting)
  try:
    return path.read_text(encoding="utf-8-sig")
  except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a null character in the name
    raise UserError(f"{setting}={path}: cannot be read ({error})") from error


def read_json(path: pathlib.Path, setting: str, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
  """Returns the JSON object a file holds.

  Args:
    path: the file.
    setting: the name of the file's flag or setting in error messages.
    max_bytes: size from which the file is taken to be something else, and is not read.

  Raises:
    UserError: the file is missing, too large or damaged, or holds no JSON object.
  """
  check_regular(path, setting)
  try:
    if path.stat().st_size > max_bytes:
      raise UserError(
        f"{setting}: {path} is too large to be read as JSON (over {max_bytes >> 20:,} MiB)"
      )
    content = json.loads(path.read_bytes())
  except OSError as error:
    raise UserError(f"{setting}: {path} cannot be read ({error})") from error
  except (ValueError, RecursionError) as error:  # ValueError: also a number of 4,300 digits
    raise UserError(f"{setting}: {path} is damaged: not JSON ({error})") from error
  if not isinstance(content, dict):
    raise UserError(f"{setting}: {path} does not hold a JSON object")
  return content
