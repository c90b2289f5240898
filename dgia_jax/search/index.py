"""An index of a folder of images: their features on disk, searched by similarity.

  INDEX/index.json        the model and the folder of images
  INDEX/features.npy      the features of all parts, (rows, D) float32, unit norm; searches map it
  INDEX/parts/00000.json  which rows the part holds, their CRC-32, and the older rows they replace
  INDEX/files/00000.json  per row: path below the folder, size, two times, SHA-256 of the content
  INDEX/gone.json         rows of files that were deleted or became unreadable; number of parts
  INDEX/annotated.json    optional, per image: path, person, captions; see `identities`
  INDEX/codes/            codes of 8 bits that searches read first; see `codes`

A part counts from the moment its file in parts/ exists, which is written last. So an interrupted
indexing continues where it stopped, and rows after the last part are leftovers. Indexing again
embeds new and changed files only. A file is taken to be unchanged if its size and times are; if
they differ, its content is hashed and decides.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dgia_jax import files as files_lib
from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError
from dgia_jax.models import pretrained
from dgia_jax.search import coded_gallery, exact, image_files, index_files
from dgia_jax.search import codes as codes_lib
from dgia_jax.search import matches as matches_lib
from dgia_jax.search.gallery import Gallery
from dgia_jax.search.identities import Identities
from dgia_jax.search.image_files import ImageFile
from dgia_jax.search.index_files import ABOUT, AnnotatedImage, Part, read_about
from dgia_jax.search.matches import Match
from dgia_jax.search.retriever import Retriever

PART_IMAGES = 4096
PART_SECONDS = 60.0  # after which a part is written, so that an interruption loses no more


@dataclasses.dataclass(frozen=True)
class IndexReport:
  """The outcome of an indexing.

  Attributes:
    added: images that are new or have changed.
    kept: images whose features were in the index already.
    removed: rows of the index whose file was deleted, has changed or became unreadable.
    unreadable: (path, reason).
    unsupported: suffix -> number of files of image types that cannot be read here.
  """

  added: int
  kept: int
  removed: int
  unreadable: list[tuple[str, str]]
  unsupported: dict[str, int]


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

  Raises:
    UserError: `images` holds no image; `out` cannot be written, is damaged or in use, or is the
      index of another model or folder.
  """
  out, images = pathlib.Path(out), pathlib.Path(images).absolute()
  listing = image_files.list_images(images)
  if not listing.files:
    raise UserError(f"--images={images}: holds no image that can be read{_also(listing)}")
  about = {
    "format": index_files.FORMAT,
    "model": _address(model),
    "model_digest": retriever.digest(),
    "images": str(images),
    "feature_width": retriever.feature_width,
  }
  try:
    for folder in (index_files.PARTS, index_files.FILES):
      (out / folder).mkdir(parents=True, exist_ok=True)
    with index_files.locked(out):
      _claim(out, about)
      report = _update(retriever, images, out, listing, on_image, on_start, verify)
      if annotated:
        index_files.write_annotated(out, annotated)
      return report
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error})") from error


def _update(
  retriever: Retriever,
  images: pathlib.Path,
  out: pathlib.Path,
  listing: image_files.Listing,
  on_image: Callable[[], Any],
  on_start: Callable[[int], Any],
  verify: bool,
) -> IndexReport:
  parts = index_files.read_parts(out)
  gone = index_files.read_gone(out, parts)
  usable = index_files.usable_rows(parts, gone)
  known = {
    file.path: (row, file, sha256)
    for part in parts
    for row, (file, sha256) in enumerate(index_files.read_files(out, part), start=part.first_row)
    if usable[row]
  }
  same, moved = _unchanged(images, listing.files, known, verify)
  _update_times(out, parts, moved)
  todo = [file for file in listing.files if file.path not in same]
  on_start(len(todo))
  unreadable, start = [], 0
  number, first_row = len(parts), parts[-1].stop_row if parts else 0
  while start < len(todo):
    chunk = todo[start : start + PART_IMAGES]
    part, failed = _write_part(retriever, images, chunk, out, number, first_row, known, on_image)
    unreadable += failed
    start += len(failed)
    if part:
      start += part.num_rows
      number, first_row = number + 1, part.stop_row
  listed = {file.path for file in listing.files} - {path for path, _ in unreadable}
  lost = {row for path, (row, _, _) in known.items() if path not in listed}
  index_files.write_gone(out, gone | lost, num_parts=number)
  codes_lib.update(out, index_files.read_parts(out), retriever.feature_width)
  return IndexReport(
    added=len(todo) - len(unreadable),
    kept=len(same),
    removed=len(known) - len(same),
    unreadable=listing.unreadable + unreadable,
    unsupported=listing.unsupported,
  )


Known = dict[str, tuple[int, ImageFile, str]]  # path -> row, file as indexed, SHA-256


def _unchanged(
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


def _sha256(path: pathlib.Path) -> str | None:
  """SHA-256 of a file; None if it cannot be read, which embedding it will report."""
  try:
    return files_lib.sha256(path)
  except OSError:
    return None


def _update_times(out: pathlib.Path, parts: Sequence[Part], moved: dict[int, ImageFile]) -> None:
  """Stores the new size and times of files whose content is unchanged."""
  for part in parts:
    rows = [row for row in moved if part.first_row <= row < part.stop_row]
    if rows:
      entries = index_files.read_files(out, part)
      for row in rows:
        entries[row - part.first_row] = (moved[row], entries[row - part.first_row][1])
      index_files.write_files(out, part.number, entries)


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
  out: pathlib.Path,
  number: int,
  first_row: int,
  known: Known,
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
  crc32 = index_files.append_features(out, first_row, features)
  index_files.write_files(out, number, entries)
  part = Part(number, first_row, len(entries), crc32, sorted(replaced))
  index_files.write_part(out, part)
  return part, unreadable


def _claim(out: pathlib.Path, about: dict[str, Any]) -> None:
  """Writes index.json, or checks that the existing one is of the same model and folder."""
  if not (out / ABOUT).exists():
    index_files.write_about(out, about)
    return
  existing = read_about(out, "--out")
  for key, name in (("model_digest", "model"), ("images", "folder of images")):
    if existing[key] != about[key]:
      raise UserError(f"--out={out} is the index of another {name}: choose another folder")


def _address(model: pathlib.Path | str) -> str:
  """The name of a model that holds in every folder: of a local one, the absolute path."""
  if pretrained.is_shipped(model) or not os.path.exists(model):
    return str(model)
  return str(pathlib.Path(model).absolute())


def _also(listing: image_files.Listing) -> str:
  """The reasons why a folder has no readable image, as the end of a sentence."""
  counts = [f"{suffix} {count}" for suffix, count in sorted(listing.unsupported.items())]
  text = f"; files of types that cannot be read here: {', '.join(counts)}" if counts else ""
  return text + "".join(f"; {path}: {reason}" for path, reason in listing.unreadable[:1])


class SearchIndex:
  """An index opened for searching.

  Attributes:
    about: the content of index.json.
    name: of the index, which is that of its folder.
    images: the folder of images.
    paths: path of every row, relative to the folder; read from disk when asked for.
    identities: who is on the images, as far as it is known.
  """

  def __init__(self, folder: pathlib.Path | str, mesh: Any, *, use_codes: bool = True):
    """Opens an index, verifies what searches will read, and makes it searchable on a mesh.

    Args:
      folder: the index.
      mesh: the mesh.
      use_codes: if the index has codes and the mesh profits; the results are the same.

    Raises:
      UserError: the folder holds no index, or an empty or damaged one.
    """
    self.about = read_about(folder)
    self.name = pathlib.Path(folder).absolute().name
    self.images = pathlib.Path(self.about["images"])
    parts, width = index_files.read_parts(folder), self.about["feature_width"]
    usable = index_files.usable_rows(parts, index_files.read_gone(folder, parts))
    use_codes = use_codes and coded_gallery.serves(mesh)
    codes = codes_lib.open_codes(folder, parts, width) if use_codes else None
    features = index_files.open_features(folder, parts, width, verify=codes is None)
    self.rows = np.flatnonzero(usable)  # that can be results, ascending
    if not len(self.rows):
      raise UserError(f"--index={folder}: holds no image; was {self.images} empty?")
    self.paths = index_files.Paths(folder, parts)
    self.identities = Identities(index_files.read_annotated(folder), self.images)
    # Scanning all paths takes a second for a million; several queries often share one pattern.
    self._matching = functools.lru_cache(4)(self._matching)
    if codes is None:
      self._read = lambda rows: np.array(features[rows])
      self._gallery = exact.ExactGallery(Gallery(features, mesh, usable), self._read)
    else:
      self._read = codes_lib.VerifiedFeatures(folder, features, codes)
      self._gallery = coded_gallery.CodedGallery(codes, usable, self._read)

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def num_rescored(self) -> int:
    """Features that searches by codes have read so far; 0 if they read all features."""
    return getattr(self._gallery, "num_rescored", 0)

  def search(self, queries_QxD: Any, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, K) cosines, best first, and (Q, K) rows; see `exact`, and `Gallery.search` for errors."""
    return self._gallery.search(queries_QxD, top)

  def matches(
    self,
    query_D: Float[np.ndarray, " D"],
    top: int,
    without: Iterable[str | os.PathLike] = (),
    only: str = "",
    fold: bool = False,
    rerank: bool = False,
  ) -> list[Match]:
    """The images that fit a query best, best first.

    Args:
      query_D: features of the query.
      top: number of images.
      without: image files that are left out of the results, such as the query itself.
      only: glob that results' paths inside the folder of images match; "" for all.
      fold: show a picture that is stored several times once, with its copies.
      rerank: order the best by `matches.reranked_order`; their scores stay cosines.
    """
    among_M = self._matching(only) if only.strip() else None
    without = {os.path.realpath(path) for path in without}
    # A power of two: each number compiles its own search, and every page asks for another.
    least = matches_lib.CANDIDATES if rerank else 1
    wanted = 1 << (max(top + len(without), least) - 1).bit_length()
    while True:
      (scores,), (rows,) = self._gallery.search(query_D[None], wanted, among_M)
      if rerank:
        candidates_CxD = self.features(rows[: matches_lib.CANDIDATES])
        order = matches_lib.reranked_order(scores, candidates_CxD)
        scores, rows = scores[order], rows[order]
      matches = [
        Match(self.images / self.paths[row], float(score), int(row))
        for score, row in zip(scores, rows, strict=True)
      ]
      if without:
        matches = [match for match in matches if os.path.realpath(match.path) not in without]
      if fold and matches:
        matches = matches_lib.folded(matches, self.features([match.row for match in matches]))
      if len(matches) >= top or len(rows) < wanted:
        return matches[:top]
      wanted *= 4  # many of the best were copies

  def _matching(self, pattern: str) -> Bool[np.ndarray, " N"]:
    """The rows that can be results and whose paths match a glob."""
    among_N = np.zeros(len(self.paths), bool)
    among_N[self.rows] = [fnmatch.fnmatchcase(self.paths[row], pattern) for row in self.rows]
    return among_N

  def histogram(self, query_D: Float[np.ndarray, " D"]) -> Float[np.ndarray, " _"]:
    """Numbers of images by their cosine similarity to a query; see `Gallery.histogram`."""
    return self._gallery.histogram(query_D)

  def features(self, rows: Sequence[int] | np.ndarray) -> Float[np.ndarray, "n D"]:
    """A copy of the features of some rows, for example to search for similar images."""
    return self._read(np.asarray(rows))
