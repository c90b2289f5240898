"""Writing files so that a reader never sees half of one, and locks against a second writer.

A file is written under a temporary name beside its destination and renamed when it is complete.
A crash, a full disk or a kill at any moment leaves the previous file, or none. `OSError` is left
to the caller, who knows which setting or flag named the path.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np

# What flock says on file systems without locks, such as some network and user-space ones.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_DIGEST = "digest"
CHECKSUMS = "SHA256SUMS"


class NoLocksError(OSError):
  """The file system of a file has no locks."""


def lock(file: IO | int, *, wait: bool = False) -> None:
  """Locks an open file until it is closed in every process that has inherited it.

  Args:
    file: any open file or its descriptor; its content does not matter.
    wait: until another process releases the lock.

  Raises:
    BlockingIOError: another process holds the lock.
    NoLocksError: the file system has no locks; whether that matters is up to the caller.
    OSError: the file cannot be locked for another reason.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except OSError as error:
    if error.errno in _NO_LOCKS:
      raise NoLocksError(error.errno, error.strerror) from error
    raise


@contextlib.contextmanager
def replacing(path: pathlib.Path | str) -> Iterator[pathlib.Path]:
  """Yields a temporary path; the file written to it becomes `path` when the block ends.

  If the block raises, the temporary file is removed and `path` keeps its old content. Two
  processes must not write the same path at the same time.
  """
  path = pathlib.Path(path)
  if path.is_dir():  # now rather than after the work; "" and "." are folders, too
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
  partial = path.with_name(f".{path.name}.partial")
  try:
    yield partial
    with partial.open("r+b") as file:
      os.fsync(file.fileno())  # otherwise a power failure could leave the new name with no content
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):  # the first error is the one to report
      partial.unlink()
    raise


def write_bytes(path: pathlib.Path | str, content: bytes) -> None:
  """Replaces `path` by a file with this content."""
  with replacing(path) as partial:
    partial.write_bytes(content)


def write_text(path: pathlib.Path | str, text: str) -> None:
  """Replaces `path` by a UTF-8 file with this text."""
  write_bytes(path, text.encode("utf-8"))


def write_json(path: pathlib.Path | str, value: object) -> None:
  """Replaces `path` by indented JSON with sorted keys; see `jsonable` for the accepted values."""
  text = json.dumps(jsonable(value), indent=2, sort_keys=True, allow_nan=False)
  write_text(path, text + "\n")


def sealed(content: dict[str, Any]) -> dict[str, Any]:
  """JSON content with a digest of itself, so that `unsealed` notices any damage."""
  return content | {_DIGEST: _digest(content)}


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
  """The content that was sealed. Raises ValueError if it is not as it was."""
  rest = {key: value for key, value in content.items() if key != _DIGEST}
  if content.get(_DIGEST) != _digest(rest):
    raise ValueError("its digest differs")
  return rest


def write_checksums(folder: pathlib.Path | str, names: Iterable[str]) -> None:
  """Writes the SHA-256 of files of a folder, as `sha256sum -c` reads it."""
  folder = pathlib.Path(folder)
  lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
  write_text(folder / CHECKSUMS, "".join(lines))


def differs_from_checksum(path: pathlib.Path) -> bool:
  """Whether `write_checksums` has listed a file that has other content now."""
  checksums = path.parent / CHECKSUMS
  if not checksums.is_file():
    return False
  try:
    lines = checksums.read_text(encoding="utf-8").splitlines()
  except ValueError:  # no text: the list is damaged
    return True
  listed = dict(reversed(line.split("  ", 1)) for line in lines if "  " in line)
  return path.name in listed and listed[path.name] != sha256(path)


def sha256(path: pathlib.Path) -> str:
  """SHA-256 of a file's content, as 64 hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def jsonable(value: object) -> object:
  """The same value in the types of JSON, also inside dicts, lists and tuples.

  NumPy and JAX scalars and arrays become numbers and lists, paths become text, keys become text,
  and NaN and the infinities become None because JSON has no number for them.
  """
  if isinstance(value, dict):
    return {str(key): jsonable(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [jsonable(item) for item in value]
  if hasattr(value, "__array__"):
    array = np.asarray(value)  # of JAX arrays too, without importing JAX
    if array.dtype.kind == "V":  # bfloat16, of which NumPy knows no Python number
      array = array.astype(np.float32)
    return jsonable(array.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return os.fspath(value) if isinstance(value, os.PathLike) else value
