"""Explains a write that failed because the disk is full: which folder, needed and free space."""

import contextlib
import errno
import pathlib
import shutil
from collections.abc import Iterator

from dgia_jax.errors import UserError

_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MESSAGES = ("No space left on device", "Disk quota exceeded", "File too large")


@contextlib.contextmanager
def explained(folder: pathlib.Path, needed_bytes: int = 0) -> Iterator[None]:
  """Turns an error about a full disk, from any library, into a `UserError`.

  Args:
    folder: where the block writes.
    needed_bytes: size of a checkpoint; 0 if it is not known.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if not is_cause(error):
      raise
    needs = f"a checkpoint needs up to {_megabytes(needed_bytes)}, " if needed_bytes else ""
    raise UserError(
      f"{folder}: the disk is full ({needs}{_megabytes(_free_bytes(folder))} are free); free some"
      " space and run the same command again to continue from the newest complete checkpoint"
    ) from error


def is_cause(error: BaseException | None) -> bool:
  """Whether an error, or one that led to it, says that the disk is full."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in _ERRNOS:
      return True
    if any(message in str(error) for message in _MESSAGES):
      return True
    error = error.__cause__ or error.__context__
  return False


def _free_bytes(folder: pathlib.Path) -> int:
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free


def _megabytes(count: int) -> str:
  return f"{count / 1e6:,.1f} MB"
