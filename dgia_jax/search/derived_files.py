"""Files that repeat what others of an index hold, in a form that searches read faster.

Those of one kind are in a folder of their own: arrays, and a JSON file with their checksums that is
written last. Damaged ones can be deleted; indexing makes them again without embedding anything.
"""

import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from dgia_jax import files as files_lib
from dgia_jax import user_files
from dgia_jax.errors import UserError


def read_about(
  path: pathlib.Path, versions: Collection[int], keys: Sequence[str]
) -> dict[str, Any] | None:
  """The content of the JSON file; None if it is missing or of another version.

  Raises:
    UserError: it is damaged, or lacks one of the keys.
  """
  if not user_files.exists(path, "--index"):
    return None
  try:
    about = files_lib.unsealed(user_files.read_json(path, "--index"))
  except (UserError, ValueError) as error:
    raise damaged(path, str(error).removeprefix(f"--index: {path} ")) from error
  if about.get("version") not in versions:
    return None
  if missing := [key for key in keys if key not in about]:
    raise damaged(path, f"it has no {', '.join(missing)}")
  return about


def mapped(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
  """Maps an array. Raises UserError if the file is missing or holds no array of this type."""
  if not user_files.exists(path, "--index"):
    raise UserError(f"--index: {path} is missing; {_mend(path.parent)}")
  try:
    user_files.check_regular(path, "--index")
    array = np.load(path, mmap_mode="r")
  except Exception as error:  # NumPy's header reader raises almost anything
    raise damaged(path, str(error).removeprefix(f"--index: {path} ")) from error
  if array.dtype != dtype or not array.flags.c_contiguous:
    raise damaged(path, f"{array.dtype} {array.shape}")
  return array


def damaged(path: pathlib.Path, reason: str) -> UserError:
  """The error for a damaged file, or for a folder of which it is not known which file is."""
  folder = path.parent if path.suffix else path
  return UserError(f"--index: {path} is damaged ({reason}); {_mend(folder)}")


def _mend(folder: pathlib.Path) -> str:
  return f"delete {folder} and index again: no image is embedded again"
