"""Rewriting the data of an index without the rows of images that are gone or were replaced.

An update only marks these rows: their features, which are personal data, their paths and their
hashes stay on disk. A compaction writes what is left into a new subfolder, then makes index.json
name it, and only then removes the former data. A crash at any moment leaves one of the two states,
and the next indexing removes what it left behind.
"""

import itertools
import pathlib
import shutil

import numpy as np

from dgia_jax.search import codes, index_files, index_paths

# All that is beside index.json before the first compaction.
_DATA = (
  index_files.FEATURES, index_files.GONE, index_files.ANNOTATED, index_files.PARTS,
  index_files.FILES, index_paths.FOLDER, codes.FOLDER,
)  # fmt: skip


def compact(out: pathlib.Path, part_rows: int) -> int:
  """Removes all rows that cannot be results, and returns their number; `out` is locked.

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
    image for image in annotated if image.path in paths or (images / image.path).exists()
  ]
  num_removed = len(usable) - len(kept)
  if not num_removed and len(still_annotated) == len(annotated):
    return 0

  new = index_files.next_data_folder(out, about)
  for folder in (index_files.PARTS, index_files.FILES):
    (new / folder).mkdir(parents=True)
  features, rows = index_files.open_features(data, parts, width), np.flatnonzero(usable)
  new_parts = []
  for number, start in enumerate(range(0, len(rows), part_rows)):
    stop = min(start + part_rows, len(rows))
    crc32 = index_files.append_features(new, start, features[rows[start:stop]])
    index_files.write_files(new, number, kept[start:stop])
    new_parts.append(index_files.Part(number, start, stop - start, crc32, []))
    index_files.write_part(new, new_parts[-1])
  if still_annotated:
    index_files.write_annotated(new, still_annotated)
  index_files.write_gone(new, set(), len(new_parts))
  index_paths.update(new, new_parts)
  codes.update(new, new_parts, width)
  index_files.replace_about(out, about | {index_files.DATA: new.name})
  remove_former_data(out)
  return num_removed


def remove_former_data(out: pathlib.Path) -> None:
  """Removes data that index.json does not name: an interrupted compaction leaves such behind."""
  about = index_files.read_about(out, "--out")
  current = index_files.data_folder(out, about)
  for folder in index_files.data_folders(out):
    if folder != current:
      for path in [folder / name for name in _DATA] if folder == out else [folder]:
        _remove(path)


def _remove(path: pathlib.Path) -> None:
  """Removes a file or a folder, if it is there."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
