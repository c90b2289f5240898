"""Which files of a folder have the content that was indexed.

A file is taken to be unchanged if its size and times are; if they differ, its content is hashed and
decides.
"""

import bisect
import itertools
import pathlib
from collections.abc import Sequence

from dgia_jax import files as files_lib
from dgia_jax.data import images as images_lib
from dgia_jax.search import index_files
from dgia_jax.search.image_files import ImageFile
from dgia_jax.search.index_files import Part

Known = dict[str, tuple[int, ImageFile, str]]  # path -> row, file as indexed, SHA-256


def unchanged(
  images: pathlib.Path, files: Sequence[ImageFile], known: Known, verify: bool
) -> tuple[set[str], dict[int, ImageFile]]:
  """Paths of files with the indexed content, and by row those whose size and times are new."""
  same, candidates = set(), []
  for file in files:
    if file.path in known:
      if file == known[file.path][1] and not verify:
        same.add(file.path)
      else:
        candidates.append(file)
  moved = {}
  hashes = images_lib.ordered_map(lambda file: _sha256(images / file.path), candidates, 0)
  for file, sha256 in zip(candidates, hashes, strict=True):
    row, indexed, indexed_sha256 = known[file.path]
    if sha256 == indexed_sha256:
      same.add(file.path)
      if file != indexed:
        moved[row] = file
  return same, moved


def update_times(data: pathlib.Path, parts: Sequence[Part], moved: dict[int, ImageFile]) -> None:
  """Stores the new size and times of files whose content is unchanged."""
  first_rows = [part.first_row for part in parts]
  part_of = lambda row: bisect.bisect_right(first_rows, row) - 1
  for number, rows in itertools.groupby(sorted(moved), part_of):
    entries = index_files.read_files(data, parts[number])
    for row in rows:
      place = row - first_rows[number]
      entries[place] = (moved[row], entries[place][1])
    index_files.write_files(data, number, entries)


def _sha256(path: pathlib.Path) -> str | None:
  """SHA-256 of a file; None if it cannot be read, which embedding it will report."""
  try:
    return files_lib.sha256(path)
  except OSError:
    return None
