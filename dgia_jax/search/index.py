"""An index of a folder of images: their features on disk, searched by similarity.

  INDEX/index.json        the model and the folder of images
  INDEX/features.npy      the features of all parts, (rows, D) float32, unit norm; searches map it
  INDEX/parts/00000.json  which rows the part holds, their CRC-32, and the older rows they replace
  INDEX/files/00000.json  per row: path below the folder, size, two times, SHA-256 of the content
  INDEX/gone.json         rows of files that were deleted or became unreadable; number of parts
  INDEX/annotated.json    optional, per image: path, person, captions; see `identities`
  INDEX/paths/            paths of all rows, as searches read them; see `index_paths`
  INDEX/codes/            codes of 8 bits that searches read first; see `codes`

All but index.json are in a subfolder once the index was compacted; see `compaction`.

A part counts from the moment its file in parts/ exists, which is written last. So an interrupted
indexing continues where it stopped, and rows after the last part are leftovers. Indexing again
embeds new and changed files only; `changes` says which these are.
"""

import dataclasses
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dgia_jax import user_files
from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError
from dgia_jax.models import pretrained
from dgia_jax.search import changes, compaction, image_files, index_files, index_paths
from dgia_jax.search import codes as codes_lib
from dgia_jax.search.image_files import ImageFile
from dgia_jax.search.index_files import ABOUT, AnnotatedImage, Part, read_about
from dgia_jax.search.opened_index import SearchIndex as SearchIndex
from dgia_jax.search.retriever import Retriever

PART_IMAGES = 4096
PART_SECONDS = 60.0  # after which a part is written, so that an interruption loses no more


@dataclasses.dataclass(frozen=True)
class IndexReport:
  """The outcome of an indexing.

  Attributes:
    added: images that are new or have changed.
    kept: images whose features were in the index already; also those in folders that could not be
      listed, of which nothing is known.
    removed: rows of the index whose file was deleted, has changed or became unreadable.
    unreadable: (path, reason).
    unsupported: suffix -> number of files of image types that cannot be read here.
    dropped: rows that a compaction has removed from the disk.
  """

  added: int
  kept: int
  removed: int
  unreadable: list[tuple[str, str]]
  unsupported: dict[str, int]
  dropped: int = 0


def build(
  retriever: Retriever,
  model: pathlib.Path | str,
  images: pathlib.Path | str,
  out: pathlib.Path | str,
  on_image: Callable[[], Any] = lambda: None,
  on_start: Callable[[int], Any] = lambda count: None,
  *,
  verify: bool = False,
  annotated: Sequence[AnnotatedImage] = (),
  compact: bool = False,
) -> IndexReport:
  """Indexes a folder, or brings its index up to date.

  Args:
    retriever: embeds the images.
    model: where the retriever was opened from, for queries to open it again.
    images: the folder of images.
    out: the index's folder.
    on_image: called after every image that was embedded or is unreadable.
    on_start: called first, with the number of these images.
    verify: hash every file, however unchanged it looks.
    annotated: annotated images, which replace those of an earlier indexing; () leaves them.
    compact: remove the rows of files that are gone or have changed from the disk.

  Raises:
    UserError: `images` holds no image; or `out` cannot be written, is damaged or in use, or is the
      index of another model or folder.
  """
  out, images = pathlib.Path(out), _plain(images)
  listing = image_files.list_images(images)
  if not listing.files and (listing.unreadable or not (out / ABOUT).exists()):
    raise UserError(f"--images={images}: holds no image that can be read{_also(listing)}")
  about = {
    "format": index_files.FORMAT,
    "model": _address(model),
    "model_digest": retriever.digest(),
    "images": str(images),
    "feature_width": retriever.feature_width,
  }
  try:
    out.mkdir(parents=True, exist_ok=True)
    with index_files.locked(out):
      data = _claim(out, about)
      for folder in (index_files.PARTS, index_files.FILES):
        (data / folder).mkdir(exist_ok=True)
      if not listing.files:
        _check_empty(images, out, data)
      report = _update(retriever, images, data, listing, on_image, on_start, verify)
      if annotated:
        index_files.write_annotated(data, annotated)
      dropped = compaction.compact(out, PART_IMAGES) if compact else 0
      return dataclasses.replace(report, dropped=dropped)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error})") from error


def _update(
  retriever: Retriever,
  images: pathlib.Path,
  data: pathlib.Path,
  listing: image_files.Listing,
  on_image: Callable[[], Any],
  on_start: Callable[[int], Any],
  verify: bool,
) -> IndexReport:
  parts, gone = index_files.read_rows(data)
  index_files.open_features(data, parts, retriever.feature_width, verify=False)  # all are there
  usable = index_files.usable_rows(parts, gone)
  known = {
    file.path: (row, file, sha256)
    for part in parts
    for row, (file, sha256) in enumerate(index_files.read_files(data, part), start=part.first_row)
    if usable[row]
  }
  same, moved = changes.unchanged(images, listing.files, known, verify)
  changes.update_times(data, parts, moved)
  todo = [file for file in listing.files if file.path not in same]
  on_start(len(todo))
  unreadable, start = [], 0
  number, first_row = len(parts), parts[-1].stop_row if parts else 0
  while start < len(todo):
    chunk = todo[start : start + PART_IMAGES]
    part, failed = _write_part(retriever, images, chunk, data, number, first_row, known, on_image)
    unreadable += failed
    start += len(failed)
    if part:
      start += part.num_rows
      number, first_row = number + 1, part.stop_row
  listed = {file.path for file in listing.files} - {path for path, _ in unreadable}
  missing = {path: row for path, (row, _, _) in known.items() if path not in listed}
  lost = {row for path, row in missing.items() if not listing.hides(path)}
  num_kept = len(same) + len(missing) - len(lost)
  index_files.write_gone(data, gone | lost, num_parts=number)
  parts = index_files.read_parts(data)
  index_paths.update(data, parts)
  codes_lib.update(data, parts, retriever.feature_width)
  return IndexReport(
    added=len(todo) - len(unreadable),
    kept=num_kept,
    removed=len(known) - num_kept,
    unreadable=listing.unreadable + unreadable,
    unsupported=listing.unsupported,
  )


def _read(
  retriever: Retriever, path: pathlib.Path
) -> tuple[str, np.ndarray] | images_lib.UnreadableImageError:
  """SHA-256 and pixels of a file, which is read once for both."""
  try:
    content = images_lib.read_bytes(path)
    image = images_lib.decode(content, path)
  except images_lib.UnreadableImageError as error:
    return error
  pixels = images_lib.resized(image, retriever.image_size, retriever.resize)
  return hashlib.sha256(content).hexdigest(), pixels


def _write_part(
  retriever: Retriever,
  images: pathlib.Path,
  files: Sequence[ImageFile],
  data: pathlib.Path,
  number: int,
  first_row: int,
  known: changes.Known,
  on_image: Callable[[], Any],
) -> tuple[Part | None, list[tuple[str, str]]]:
  """Embeds files and writes those that are readable as one part; returns (path, reason) of others.

  The part ends with a full batch once `PART_SECONDS` have passed; the files after it are left. Only
  the features of one part are in memory at a time.
  """
  entries, unreadable = [], []
  end_time = time.monotonic() + PART_SECONDS

  def pixels() -> Iterator[np.ndarray]:
    read = lambda file: _read(retriever, images / file.path)
    for file, result in zip(files, images_lib.ordered_map(read, files, 0), strict=True):
      on_image()
      if isinstance(result, images_lib.UnreadableImageError):
        unreadable.append((file.path, result.reason))
      else:
        sha256, image = result
        entries.append((file, sha256))
        yield image
        # Between batches: one that is not full would be filled up and computed all the same.
        if len(entries) % retriever.whole_batch == 0 and time.monotonic() >= end_time:
          return

  features = retriever.embed_images(pixels())
  if not entries:
    return None, unreadable
  replaced = [known[file.path][0] for file, _ in entries if file.path in known]
  crc32 = index_files.append_features(data, first_row, features)
  index_files.write_files(data, number, entries)
  part = Part(number, first_row, len(entries), crc32, sorted(replaced))
  index_files.write_part(data, part)
  return part, unreadable


def _claim(out: pathlib.Path, about: dict[str, Any]) -> pathlib.Path:
  """Writes index.json, or checks that the existing one is of the same model and folder.

  Returns:
    Where everything else is.
  """
  if not (out / ABOUT).exists():
    for folder in index_files.data_folders(out):
      if index_files.part_paths(folder):
        raise UserError(
          f"--out={out} is damaged: {ABOUT} is missing, so nothing tells which model made its"
          " features; delete the folder and index again"
        )
    index_files.write_about(out, about)
    return out
  existing = read_about(out, "--out")
  is_same_folder = os.path.realpath(existing["images"]) == os.path.realpath(about["images"])
  for is_same, name in (
    (existing["model_digest"] == about["model_digest"], "model"),
    (is_same_folder, "folder of images"),
  ):
    if not is_same:
      raise UserError(f"--out={out} is the index of another {name}: choose another folder")
  compaction.remove_former_data(out)
  return index_files.data_folder(out, existing)


def _check_empty(images: pathlib.Path, out: pathlib.Path, data: pathlib.Path) -> None:
  """Raises UserError if an index has images: a drive that is not mounted is an empty folder."""
  num_images = int(index_files.usable_rows(*index_files.read_rows(data)).sum())
  if num_images:
    raise UserError(
      f"--images={images}: holds no image, but the index has {num_images:,}: is a drive not"
      f" mounted? To start over, delete {out}"
    )


def _plain(folder: pathlib.Path | str) -> pathlib.Path:
  """The absolute path of a folder, without `..` where that leads to the same folder."""
  path = pathlib.Path(folder).absolute()
  plain = pathlib.Path(os.path.normpath(path))
  return plain if os.path.realpath(plain) == os.path.realpath(path) else path


def _address(model: pathlib.Path | str) -> str:
  """The name of a model that holds in every folder: of a local one, the absolute path."""
  path = user_files.expanded(model, "--run")
  is_local = not pretrained.is_shipped(model) and path.exists()
  return str(path.absolute() if is_local else model)


def _also(listing: image_files.Listing) -> str:
  """The reasons why a folder has no readable image, as the end of a sentence."""
  counts = [f"{suffix} {count}" for suffix, count in sorted(listing.unsupported.items())]
  text = f"; files of types that cannot be read here: {', '.join(counts)}" if counts else ""
  return text + "".join(f"; {path}: {reason}" for path, reason in listing.unreadable[:1])
