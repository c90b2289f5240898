"""Reading and writing the files of an index; `index` describes them.

Every JSON file holds a digest of itself and features.npy has a checksum for each part, so damage
is noticed rather than searched.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from dgia_jax import files as files_lib
from dgia_jax import user_files
from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError
from dgia_jax.search.image_files import ImageFile

ABOUT, GONE, FEATURES, PARTS, FILES = "index.json", "gone.json", "features.npy", "parts", "files"
ANNOTATED = "annotated.json"
DATA = "data"  # key of index.json: the subfolder with all other files; they are beside it without
FORMAT = 3
COMPACTED_FORMAT = 4  # with the key DATA, which releases that know format 3 alone would miss
_MEND = "delete the index's folder and index again"
# Far more than the captions of all images of a large index; a larger file is damaged.
_MAX_SEALED_BYTES = 2**34
_DATA_NAME = re.compile(r"data\d+")
PART_NAME = re.compile(r"[0-9]{5,}\.json")
_KEYS = ("format", "model", "model_digest", "images", "feature_width")


@dataclasses.dataclass(frozen=True)
class Part:
  """A run of rows that were written together."""

  number: int
  first_row: int
  num_rows: int
  crc32: int  # of the bytes of its rows in features.npy
  replaced_rows: list[int]  # rows of older parts, whose files these rows show in a newer state

  @property
  def stop_row(self) -> int:
    """One after the last row."""
    return self.first_row + self.num_rows


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
  """What annotations say about an image."""

  path: str  # relative to the folder of images, with forward slashes
  person: int | None  # None if unknown
  captions: list[str]  # at least one


def read_about(folder: pathlib.Path | str, setting: str = "--index") -> dict[str, Any]:
  """The content of index.json.

  Raises:
    UserError: it is missing or damaged, or of another version.
  """
  path = pathlib.Path(folder) / ABOUT
  if not user_files.exists(path, setting):
    raise UserError(
      f"{setting}={folder}: holds no index ({ABOUT} is missing); make an index first:"
      " python -m dgia_jax.search index"
    )
  about = user_files.read_json(path, setting, _MAX_SEALED_BYTES)
  if "model_digest" in about and about.get("format") not in (FORMAT, COMPACTED_FORMAT):
    raise UserError(f"{setting}={folder}: written by another version of dgia_jax; {_MEND}")
  if missing := [key for key in _KEYS if key not in about]:
    raise UserError(f"{setting}={folder}: {ABOUT} has no {', '.join(missing)}; {_MEND}")
  return _unsealed(path, about, setting)


def write_about(folder: pathlib.Path, about: dict[str, Any]) -> None:
  """Makes a folder an index, still without images; `read_about` reads what is given here."""
  write_gone(folder, set(), num_parts=0)
  replace_about(folder, about)


def replace_about(folder: pathlib.Path, about: dict[str, Any]) -> None:
  """Replaces index.json."""
  files_lib.write_json(folder / ABOUT, files_lib.sealed(about))


def data_folder(folder: pathlib.Path | str, about: dict[str, Any]) -> pathlib.Path:
  """Where everything but index.json is: in the index's folder, or in one below, once compacted.

  Raises:
    UserError: index.json names another place.
  """
  name = about.get(DATA, "")
  if name and not (isinstance(name, str) and _DATA_NAME.fullmatch(name)):
    raise _damaged(pathlib.Path(folder) / ABOUT)
  return pathlib.Path(folder) / name


def data_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """All places where data of an index may be, also those that index.json does not name."""
  named = [path for path in folder.iterdir() if _DATA_NAME.fullmatch(path.name)]
  return [folder, *(path for path in named if path.is_dir() and not path.is_symlink())]


def next_data_folder(folder: pathlib.Path, about: dict[str, Any]) -> pathlib.Path:
  """The place for the data of the next compaction, where nothing is yet."""
  number = int(about.get(DATA, "").removeprefix("data") or 0)
  places = (folder / f"data{following}" for following in itertools.count(number + 1))
  return next(place for place in places if not os.path.lexists(place))


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Iterator[None]:
  """Keeps a second process from writing the same index."""
  with (out / ".lock").open("w") as file:
    try:
      files_lib.lock(file)
    except BlockingIOError as error:
      raise UserError(f"--out={out}: another process is writing this index; wait for it") from error
    except files_lib.NoLocksError:
      logging.warning(
        "the file system of %s has no locks: do not write this index twice at the same time", out
      )
    yield


def read_rows(folder: pathlib.Path | str) -> tuple[list[Part], set[int]]:
  """The parts of an index, and the rows whose file is gone.

  Raises:
    UserError: a file is damaged or missing.
  """
  # An update writes parts before it counts them, so they are read after their number.
  path = pathlib.Path(folder) / GONE
  content, parts = _read_sealed(path), read_parts(folder)
  rows, num_parts = content.get("rows"), content.get("parts")
  num_rows = parts[-1].stop_row if parts else 0
  if type(num_parts) is not int or not isinstance(rows, list):
    raise _damaged(path)
  if len(parts) < num_parts:
    missing = pathlib.Path(folder) / PARTS / part_name(len(parts))
    raise UserError(f"--index={folder}: {missing} is missing; {_MEND}")
  if not all(type(row) is int and 0 <= row < num_rows for row in rows):
    raise _damaged(path)
  return parts, set(rows)


def read_parts(folder: pathlib.Path | str) -> list[Part]:
  """The complete parts of an index, in order. Raises UserError if one is damaged."""
  parts, next_row = [], 0
  # By number, as the names of 100,000 parts and more differ in length.
  number_of = lambda path: int(path.stem)
  for number, path in enumerate(sorted(part_paths(folder), key=number_of)):
    content = _read_sealed(path)
    try:
      fields = {field.name: content[field.name] for field in dataclasses.fields(Part)[1:]}
      part = Part(number, **fields)
      valid = (
        number_of(path) == number
        and part.first_row == next_row
        and type(part.num_rows) is int
        and part.num_rows > 0
        and type(part.crc32) is int
        and all(type(row) is int and 0 <= row < next_row for row in part.replaced_rows)
      )
    except (KeyError, TypeError, ValueError):
      valid = False
    if not valid:
      raise _damaged(path)
    parts.append(part)
    next_row = part.stop_row
  return parts


def part_name(number: int) -> str:
  """The name of the files of a part."""
  return f"{number:05d}.json"


def part_paths(folder: pathlib.Path | str) -> list[pathlib.Path]:
  """The files that list the parts of an index, in any order."""
  paths = (pathlib.Path(folder) / PARTS).glob("*.json")
  return [path for path in paths if PART_NAME.fullmatch(path.name)]


def write_part(out: pathlib.Path, part: Part) -> None:
  """Makes a part count; its features and files are written before."""
  content = dataclasses.asdict(part)
  del content["number"]
  files_lib.write_json(out / PARTS / part_name(part.number), files_lib.sealed(content))


def write_gone(out: pathlib.Path, rows: set[int], num_parts: int) -> None:
  """Writes the rows whose file is gone, and how many parts the index has from now on."""
  files_lib.write_json(out / GONE, files_lib.sealed({"rows": sorted(rows), "parts": num_parts}))


def read_annotated(folder: pathlib.Path | str) -> list[AnnotatedImage]:
  """The annotated images of an index, none if it was made without annotations.

  Raises:
    UserError: the file that lists them is damaged.
  """
  path = pathlib.Path(folder) / ANNOTATED
  if not user_files.exists(path, "--index"):
    return []
  try:
    images = [AnnotatedImage(*row) for row in _read_sealed(path)["rows"]]
  except (KeyError, TypeError):
    images = []
  valid = all(
    is_inside(image.path)
    and (image.person is None or type(image.person) is int)
    and isinstance(image.captions, list)
    and image.captions
    and all(isinstance(caption, str) for caption in image.captions)
    for image in images
  )
  if not images or not valid:
    raise _damaged(path)
  return images


def write_annotated(out: pathlib.Path, images: Iterable[AnnotatedImage]) -> None:
  """Writes the list that `read_annotated` reads."""
  rows = [list(dataclasses.astuple(image)) for image in images]
  files_lib.write_text(out / ANNOTATED, json.dumps(files_lib.sealed({"rows": rows})))


def usable_rows(parts: Sequence[Part], gone: set[int]) -> Bool[np.ndarray, " N"]:
  """For every row, whether it shows a file as it is now."""
  usable = np.ones(parts[-1].stop_row if parts else 0, bool)
  for part in parts:
    usable[part.replaced_rows] = False
  usable[sorted(gone)] = False
  return usable


def read_files(folder: pathlib.Path | str, part: Part) -> list[tuple[ImageFile, str]]:
  """File and SHA-256 of every row of a part. Raises UserError if their list is damaged."""
  try:
    return [(ImageFile(*entry), sha256) for *entry, sha256 in _read_rows(folder, part)]
  except TypeError as error:
    raise _damaged(_files_path(folder, part.number)) from error


def read_paths(folder: pathlib.Path | str, part: Part) -> list[str]:
  """The path of every row of a part. Raises UserError if their list is damaged."""
  return [entry[0] for entry in _read_rows(folder, part)]


def _read_rows(folder: pathlib.Path | str, part: Part) -> list[list[Any]]:
  """Path, size, times and SHA-256 of every row of a part."""
  path = _files_path(folder, part.number)
  rows = _read_sealed(path).get("rows")
  if (
    not isinstance(rows, list)
    or len(rows) != part.num_rows
    or not all(isinstance(row, list) and row and is_inside(row[0]) for row in rows)
  ):
    raise _damaged(path)
  return rows


def write_files(out: pathlib.Path, number: int, entries: Iterable[tuple[ImageFile, str]]) -> None:
  """Writes the list that `read_files` reads."""
  rows = [[*dataclasses.astuple(file), sha256] for file, sha256 in entries]
  files_lib.write_text(_files_path(out, number), json.dumps(files_lib.sealed({"rows": rows})))


def append_features(out: pathlib.Path, first_row: int, features: Float[np.ndarray, "n D"]) -> int:
  """Writes features from a row on and returns their CRC-32; see `append_rows`."""
  return append_rows(out / FEATURES, first_row, features.astype("<f4", copy=False))


def append_rows(path: pathlib.Path, first_row: int, rows: np.ndarray) -> int:
  """Writes rows to an .npy file from a row on and returns the CRC-32 of their bytes.

  Rows that are part of the index are never changed, so that searches may have them mapped.

  Raises:
    UserError: the file lacks some of the rows before these.
  """
  rows = np.ascontiguousarray(rows)
  header = _header((first_row + len(rows), *rows.shape[1:]), rows.dtype)
  size = path.stat().st_size if path.exists() else 0
  if first_row and size < len(header) + first_row * rows[:1].nbytes:
    raise UserError(f"--index: {path} has fewer than {first_row:,} rows; {_MEND}")
  with path.open("r+b" if path.exists() else "w+b") as file:
    file.seek(len(header) + first_row * rows[:1].nbytes)
    file.write(rows)
    file.flush()
    os.fsync(file.fileno())  # the rows must be on disk before the header counts them
    file.seek(0)
    file.write(header)
    file.flush()
    os.fsync(file.fileno())
  return zlib.crc32(rows)


def num_stored_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """The size of an .npy file that `append_rows` has written."""
  return len(_header(shape, dtype)) + math.prod(shape) * dtype.itemsize


def open_features(
  folder: pathlib.Path | str, parts: Sequence[Part], width: int, *, verify: bool = True
) -> Float[np.ndarray, "N D"]:
  """Maps the features of all parts; verifying their checksums reads the whole file.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = pathlib.Path(folder) / FEATURES
  num_rows = parts[-1].stop_row if parts else 0
  if not num_rows:
    return np.zeros((0, width), np.float32)
  user_files.check_regular(path, "--index")
  try:
    features = np.load(path, mmap_mode="r")
  except Exception as error:  # NumPy's header reader raises almost anything
    raise UserError(f"--index={folder}: {path} cannot be read ({error}); {_MEND}") from error
  if (
    features.dtype != np.float32
    or features.shape[1:] != (width,)
    or len(features) < num_rows
    or not features.flags.c_contiguous
  ):
    raise UserError(
      f"--index={folder}: {path} is damaged: {features.dtype} {features.shape}; {_MEND}"
    )
  if verify:
    check = lambda part: check_part(folder, part, features[part.first_row : part.stop_row])
    for _ in images_lib.ordered_map(check, parts, 0):
      pass
  return features[:num_rows]


def check_part(folder: pathlib.Path | str, part: Part, features: Float[np.ndarray, "n D"]) -> None:
  """Raises UserError unless these are the features that were written as a part."""
  if zlib.crc32(features) != part.crc32:
    raise damaged_features(folder, f"rows {part.first_row:,} to {part.stop_row - 1:,}")


def damaged_features(folder: pathlib.Path | str, rows: str) -> UserError:
  """The error for rows of features.npy that differ from their checksum."""
  path = pathlib.Path(folder) / FEATURES
  return UserError(f"--index={folder}: {rows} of {path} are damaged (checksum differs); {_MEND}")


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
  """The header of an .npy file; NumPy leaves room in it for the number of rows to grow."""
  buffer = io.BytesIO()
  descr = np.lib.format.dtype_to_descr(dtype)
  description = {"descr": descr, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(buffer, description)
  return buffer.getvalue()


def _files_path(folder: pathlib.Path | str, number: int) -> pathlib.Path:
  return pathlib.Path(folder) / FILES / part_name(number)


def is_inside(path: Any) -> bool:
  """Whether a path leads into the folder of images; another one could show any file."""
  return (
    isinstance(path, str)
    and path != ""
    and "\0" not in path
    and not path.startswith("/")
    and "/../" not in f"/{path}/"
  )


def _read_sealed(path: pathlib.Path) -> dict[str, Any]:
  content = user_files.read_json(path, "--index", _MAX_SEALED_BYTES)
  return _unsealed(path, content, "--index")


def _unsealed(path: pathlib.Path, content: dict[str, Any], setting: str) -> dict[str, Any]:
  try:
    return files_lib.unsealed(content)
  except ValueError as error:
    raise UserError(f"{setting}: {path} is damaged ({error}); {_MEND}") from error


def _damaged(path: pathlib.Path) -> UserError:
  return UserError(f"--index: {path} is damaged; {_MEND}")
