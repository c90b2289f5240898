"""An index of a folder of images: their features on disk, found again by similarity.

  INDEX/index.json        which model and which folder of images
  INDEX/parts/00000.npy   features of up to `PART_IMAGES` images, (n, D) float32, memory-mapped
  INDEX/parts/00000.json  their paths below the folder, with size and time of change
  INDEX/gone.json         paths that were indexed once and are no longer there

A part appears only when it is complete, its list of paths last, so an interrupted indexing goes on
where it stopped. Indexing again adds new and changed images and forgets those that are gone.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np
from PIL import Image

from dgia_jax import files as files_lib
from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError
from dgia_jax.search.retriever import Gallery

ABOUT = "index.json"
GONE = "gone.json"
PARTS = "parts"
PART_IMAGES = 4096
_KEYS = ("model", "model_digest", "images", "feature_width")


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image below the indexed folder."""

  path: str  # relative, with forward slashes
  size: int  # bytes
  changed: int  # nanoseconds, as the file system keeps it


@dataclasses.dataclass(frozen=True)
class Report:
  """What an indexing did."""

  added: int
  kept: int
  forgotten: int  # were in the index and are gone, or have changed
  unreadable: list  # (path, reason)


def list_images(folder):
  """All image files below a folder, sorted by path, links followed: a list of ImageFile.

  Raises:
    UserError: there is no such folder.
  """
  if not os.path.isdir(folder):
    raise UserError(f"--images={folder}: no such folder")
  endings = tuple(Image.registered_extensions())
  found = []
  for parent, folders, names in os.walk(folder, followlinks=True):
    folders.sort()
    for name in names:
      if name.lower().endswith(endings):
        path = os.path.join(parent, name)
        if os.path.isfile(path):
          facts = os.stat(path)
          relative = os.path.relpath(path, folder).replace(os.sep, "/")
          found.append(ImageFile(relative, facts.st_size, facts.st_mtime_ns))
  return sorted(found, key=lambda file: file.path)


def build(retriever, model, images, out, on_image=lambda: None, on_start=lambda count: None):
  """Indexes a folder, or brings its index up to date.

  Args:
    retriever: a Retriever.
    model: the folder it was made from, to be found again by queries.
    images: the folder of images.
    out: the index's folder.
    on_image: called once for every image embedded or found unreadable.
    on_start: called with the number of these before the first.

  Returns:
    A Report.

  Raises:
    UserError: `images` is no folder, or `out` holds the index of another model or folder, or
      cannot be written.
  """
  out, images = pathlib.Path(out), pathlib.Path(images).absolute()
  files = list_images(images)
  about = {
    "model": str(pathlib.Path(model).absolute()),
    "model_digest": retriever.digest(),
    "images": str(images),
    "feature_width": retriever.feature_width,
  }
  try:
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    _claim(out, about)
    parts = _parts(out)
    known = {file for part in parts for file in part.files}
    there = set(files)
    missing = [file for file in files if file not in known]
    on_start(len(missing))
    unreadable = []
    first = 1 + max((part.number for part in parts), default=-1)
    for number, start in enumerate(range(0, len(missing), PART_IMAGES), start=first):
      part = missing[start : start + PART_IMAGES]
      unreadable += _write_part(retriever, images, part, out, number, on_image)
    gone = {file.path for file in known} - {file.path for file in files}
    files_lib.write_json(out / GONE, sorted(gone | {path for path, _ in unreadable}))
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error})") from error
  kept = len(known & there)
  return Report(len(missing) - len(unreadable), kept, len(known) - kept, unreadable)


class SearchIndex:
  """An index opened for searching.

  Attributes:
    about: what index.json holds.
    images: the folder of images.
    paths: of the images, relative to it; row i of a search is `paths[i]`.
  """

  def __init__(self, folder, mesh):
    """Opens INDEX and puts its features onto the devices of a mesh, by rows.

    Raises:
      UserError: the folder holds no index, or an empty or damaged one.
    """
    self.about = read_about(folder)
    self.images = pathlib.Path(self.about["images"])
    parts = _parts(folder)
    newest = {}  # a file that changed stands in two parts: the later one counts
    for number, part in enumerate(parts):
      newest |= {file.path: (number, row) for row, file in enumerate(part.files)}
    for path in _gone(folder, parts):
      del newest[path]
    if not newest:
      raise UserError(f"--index={folder}: holds no image; was {self.images} empty?")
    self.paths, places = zip(*sorted(newest.items(), key=lambda item: item[1]), strict=True)
    self._rows = _Rows([part.features() for part in parts], np.array(places))
    self._gallery = Gallery(self._rows, mesh)

  def __len__(self):
    return len(self.paths)

  def search(self, queries_QxD, top):
    """(Q, K) float32 cosines, best first, and (Q, K) int32 rows, as `Retriever.rank`."""
    return self._gallery.search(queries_QxD, top)

  def features(self, rows):
    """(n, D) float32 features of rows, to search for more like them."""
    return self._rows.take(np.asarray(rows))


def read_about(folder):
  """What index.json of an index holds. Raises UserError when there is none."""
  path = pathlib.Path(folder) / ABOUT
  try:
    about = json.loads(path.read_text(encoding="utf-8"))
    return {key: about[key] for key in _KEYS}
  except (OSError, ValueError, KeyError) as error:
    raise UserError(
      f"--index={folder}: holds no readable {ABOUT} ({error}); make an index first: "
      "python -m dgia_jax.search index"
    ) from error


@dataclasses.dataclass(frozen=True)
class _Part:
  number: int
  folder: pathlib.Path
  files: tuple

  def features(self):
    return np.load(self.folder / f"{self.number:05d}.npy", mmap_mode="r")


class _Rows:
  """The chosen rows of several files as one array of which parts are read when asked for."""

  def __init__(self, arrays, places_Nx2):
    self._arrays, self._places_Nx2 = arrays, places_Nx2  # (file, row in it) of every row
    self.shape = (len(places_Nx2), arrays[0].shape[1])

  def __getitem__(self, rows):
    return self.take(np.arange(len(self._places_Nx2))[rows])

  def take(self, rows_n):
    found_nxD = np.empty((len(rows_n), self.shape[1]), np.float32)
    files_n, row_in_file_n = self._places_Nx2[rows_n].T
    for number in np.unique(files_n):
      chosen = files_n == number
      found_nxD[chosen] = self._arrays[number][row_in_file_n[chosen]]
    return found_nxD


def _gone(folder, parts):
  """Paths that are in the parts and are gone from the indexed folder."""
  path = pathlib.Path(folder) / GONE
  said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
  return set(said) & {file.path for part in parts for file in part.files}


def _parts(folder):
  """The complete parts of an index, in order."""
  folder = pathlib.Path(folder) / PARTS
  parts = []
  for path in sorted(folder.glob("*.json")):
    try:
      files = tuple(ImageFile(*entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
      raise UserError(f"{path}: is damaged ({error}); delete it and index again") from error
    parts.append(_Part(int(path.stem), folder, files))
  return parts


def _claim(out, about):
  """Writes index.json, or makes sure that the one there is of the same model and folder."""
  if not (out / ABOUT).exists():
    files_lib.write_json(out / ABOUT, about)
    return
  found = read_about(out)
  for key, said in (("model_digest", "model"), ("images", "folder of images")):
    if found[key] != about[key]:
      raise UserError(f"--out={out} is the index of another {said}: choose another folder")


def _write_part(retriever, images, files, out, number, on_image):
  """Embeds some files and writes them as one part; returns what was unreadable."""
  readable, unreadable = [], []

  def read(file):
    try:
      return retriever.read_image(images / file.path)
    except images_lib.UnreadableImageError as error:
      return error

  def pixels():
    for file, image in zip(files, images_lib.ordered_map(read, files, 0), strict=True):
      on_image()
      if isinstance(image, np.ndarray):
        readable.append(file)
        yield image
      else:
        unreadable.append((file.path, image.reason))

  features = retriever.embed_images(pixels())
  if readable:
    name = f"{number:05d}"
    temporary = out / PARTS / f".{name}.partial"
    with open(temporary, "wb") as opened:
      np.save(opened, features)
    os.replace(temporary, out / PARTS / f"{name}.npy")
    entries = [dataclasses.astuple(file) for file in readable]
    files_lib.write_json(out / PARTS / f"{name}.json", entries)
  return unreadable
