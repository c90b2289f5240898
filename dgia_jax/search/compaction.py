"""Rewriting the data of an index without the rows of images that are gone or were replaced.

An update only marks these rows: their features, which are personal data, their paths and their
hashes stay on disk. A compaction writes what is left into a new subfolder, then makes index.json
name it, and only then removes the former data. A crash at any moment leaves one of the two states,
and the next indexing removes what it left behind.
"""

import contextlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from dgia_jax.errors import UserError
from dgia_jax.search import codes, index_files, index_paths
from dgia_jax.search.image_files import ImageFile

_any_of = lambda *names: re.compile("|".join(map(re.escape, names)))
# What an index writes besides gone.json, by subfolder; all else in its folder is the user's.
_NAMES = {
  "": _any_of(index_files.FEATURES, index_files.ANNOTATED),
  index_files.PARTS: index_files.PART_NAME,
  index_files.FILES: index_files.PART_NAME,
  index_paths.FOLDER: _any_of(index_paths.TEXT, index_paths.STOPS, index_paths.ABOUT),
  codes.FOLDER: _any_of(codes.CODES, codes.ROWS, codes.ABOUT),
}
_PARTIAL = re.compile(r"\.(.+)\.partial")  # of a write that was interrupted


def compact(out: pathlib.Path, part_rows: int) -> int:
  """Removes all rows that cannot be results, and returns their number; `out` is locked.

  What an interrupted indexing wrote behind the last part is removed as well.

  Args:
    out: the index.
    part_rows: of each part that is written.

  Raises:
    UserError: the index is damaged.
    OSError: the new data cannot be written.
  """
  about = index_files.read_about(out, "--out")
  data, width = index_files.data_folder(out, about), about["feature_width"]
  parts, gone = index_files.read_rows(data)
  usable = index_files.usable_rows(parts, gone)
  entries = itertools.chain.from_iterable(index_files.read_files(data, part) for part in parts)
  kept = list(itertools.compress(entries, usable))
  annotated = index_files.read_annotated(data)
  images, paths = pathlib.Path(about["images"]), {file.path for file, _ in kept}
  still_annotated = [
    image for image in annotated if image.path in paths or _may_exist(images / image.path)
  ]
  num_removed = len(usable) - len(kept)
  is_clean = not num_removed and len(still_annotated) == len(annotated)
  if is_clean and not _has_leftovers(data, parts, width):
    return 0

  new = index_files.next_data_folder(out, about)
  try:
    _write(new, data, parts, width, np.flatnonzero(usable), kept, still_annotated, part_rows)
    compacted = {"format": index_files.COMPACTED_FORMAT, index_files.DATA: new.name}
    index_files.replace_about(out, about | compacted)
  except BaseException:  # such as a full disk, which needs the space
    with contextlib.suppress(OSError, UserError):  # the first error is the one to report
      remove_former_data(out)
    raise
  remove_former_data(out)
  return num_removed


def _write(
  new: pathlib.Path,
  data: pathlib.Path,
  parts: Sequence[index_files.Part],
  width: int,
  rows: Int[np.ndarray, " n"],
  entries: Sequence[tuple[ImageFile, str]],
  annotated: Sequence[index_files.AnnotatedImage],
  part_rows: int,
) -> None:
  """Writes some rows of an index, with their `entries`, to a new folder."""
  new.mkdir()
  index_files.write_gone(new, set(), 0)  # first: it shows whose folder this is
  for folder in (index_files.PARTS, index_files.FILES):
    (new / folder).mkdir()
  features = index_files.open_features(data, parts, width)
  new_parts = []
  for number, start in enumerate(range(0, len(rows), part_rows)):
    stop = min(start + part_rows, len(rows))
    crc32 = index_files.append_features(new, start, features[rows[start:stop]])
    index_files.write_files(new, number, entries[start:stop])
    new_parts.append(index_files.Part(number, start, stop - start, crc32, []))
    index_files.write_part(new, new_parts[-1])
  if annotated:
    index_files.write_annotated(new, annotated)
  index_files.write_gone(new, set(), len(new_parts))
  index_paths.update(new, new_parts)
  codes.update(new, new_parts, width)


def remove_former_data(out: pathlib.Path) -> None:
  """Removes data that index.json does not name: an interrupted compaction leaves such behind.

  Images may be in the folder of their index, so only files that an index writes are removed.
  """
  about = index_files.read_about(out, "--out")
  current = index_files.data_folder(out, about)
  for folder in index_files.data_folders(out):
    is_other_index = folder != out and (folder / index_files.ABOUT).exists()
    if folder != current and not is_other_index:
      _remove_data(folder)


def _may_exist(path: pathlib.Path) -> bool:
  """Whether a file exists; True where that cannot be checked."""
  try:
    return path.exists()
  except OSError:
    return True


def _has_leftovers(data: pathlib.Path, parts: Sequence[index_files.Part], width: int) -> bool:
  """Whether an interrupted indexing has left features or paths that no part counts."""
  names = {index_files.part_name(part.number) for part in parts}
  if any(
    _PARTIAL.fullmatch(path.name)
    or path.parent.name in (index_files.PARTS, index_files.FILES)
    and path.name not in names
    for path in _own_files(data)
  ):
    return True
  features = data / index_files.FEATURES
  num_rows = parts[-1].stop_row if parts else 0
  num_bytes = index_files.num_stored_bytes((num_rows, width), np.dtype("<f4")) if num_rows else 0
  return features.exists() and features.stat().st_size > num_bytes


def _remove_data(folder: pathlib.Path) -> None:
  """Removes the data of an index from a folder, if there is any, and the folder if it is empty."""
  gone = folder / index_files.GONE
  if gone.is_symlink() or not gone.is_file():  # all data of an index have this file
    return
  for path in [*_own_files(folder)]:
    _remove(path)
  for name in filter(None, _NAMES):
    _remove_if_empty(folder / name)
  _remove(gone)  # last: it shows whose folder this is
  _remove_if_empty(folder)


def _own_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """The files that an index has written to a folder of data, except for gone.json; no links."""
  for name, names in _NAMES.items():
    if not (name and (folder / name).is_symlink()):
      for path in (folder / name).glob("*"):
        partial = _PARTIAL.fullmatch(path.name)
        is_own = names.fullmatch(partial[1] if partial else path.name)
        if is_own and path.is_file() and not path.is_symlink():
          yield path


def _remove(path: pathlib.Path) -> None:
  """Removes a file; tests stop here."""
  path.unlink()


def _remove_if_empty(folder: pathlib.Path) -> None:
  if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
    folder.rmdir()
