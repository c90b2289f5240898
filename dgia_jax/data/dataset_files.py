"""Finds the files of a dataset: its annotations and the image file of every record.

Archives unpack in many ways, so several layouts are accepted: the given folder may be the dataset
or its parent, and images may be in imgs/, images/ or beside the JSON. An image outside the dataset
is refused, because a path in a downloaded JSON can point anywhere. The checker and the builders
both start from here.
"""

import dataclasses
import functools
import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence

from dgia_jax.data import annotation_formats, catalog
from dgia_jax.data import annotations as annotations_lib
from dgia_jax.errors import UserError

_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
_MAX_FOLDERS_SEARCHED = 20_000


@dataclasses.dataclass(frozen=True)
class DatasetFiles:
  """Annotations with the file of every image.

  Attributes:
    name: name of the dataset in `catalog.LAYOUTS`.
    annotations: the records, and the remarks made while reading them.
    image_folders: the folders that were searched, in this order.
    paths: for each record the absolute path of its image, None if there is no such file.
  """

  name: str
  annotations: annotations_lib.Annotations
  image_folders: tuple[str, ...]
  paths: tuple[str | None, ...]

  @property
  def layout(self) -> catalog.Layout:
    """The description of the dataset."""
    return catalog.LAYOUTS[self.name]

  @property
  def image_folder(self) -> str:
    """The searched folder that holds the images (the first one if no image was found)."""
    first = next((path for path in self.paths if path), "")
    inside = (base for base in self.image_folders if first.startswith(base + os.sep))
    return next(inside, self.image_folders[0])

  def missing(self) -> list[annotations_lib.ImageRecord]:
    """The records without an image file."""
    rows = zip(self.annotations.records, self.paths, strict=True)
    return [record for record, path in rows if path is None]

  def missing_folders(self) -> dict[str, list[annotations_lib.ImageRecord]]:
    """The records without a file, by the topmost folder of their path that does not exist.

    Records whose folders all exist are under "".
    """
    is_folder = functools.cache(
      lambda head: any(os.path.isdir(os.path.join(base, head)) for base in self.image_folders)
    )
    records_of: dict[str, list[annotations_lib.ImageRecord]] = {}
    for record in self.missing():
      parts = record.path.split("/")[:-1]
      heads = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
      absent = next((head for head in heads if not is_folder(head)), "")
      records_of.setdefault(absent, []).append(record)
    return records_of

  def folder_with_missing(self) -> str | None:
    """A folder inside the searched ones in which most of the missing images do exist."""
    missing = self.missing()
    sample = [record.path for record in missing[:: max(1, len(missing) // 10)]]
    searched = 0
    for base in self.image_folders:
      for folder, subfolders, _ in os.walk(base):
        hits = sum(os.path.isfile(os.path.join(folder, path)) for path in sample)
        searched += 1
        if 2 * hits > len(sample):
          return folder
        if searched > _MAX_FOLDERS_SEARCHED:
          return None
        subfolders.sort()
    return None


def open_dataset(
  name: str,
  *,
  source: str | None = None,
  annotations: str | None = None,
  images: str | None = None,
  allow_outside: bool = False,
) -> DatasetFiles:
  """Finds and reads a dataset's annotations and looks for the file of every image.

  Faulty entries and missing images do not raise; the result lists them. Without `allow_outside` an
  image must be inside `images` or, without that, inside `source` or the folder of the annotations,
  after all symbolic links are followed. Records of other images become errors of the annotations.

  Args:
    name: a name in `catalog.LAYOUTS`.
    source: the dataset's folder, or the folder that holds it.
    annotations: the annotation file, if it cannot be found in `source`.
    images: the folder that image paths are relative to; then no other folder is searched. Paths may
      begin with the name of this folder.
    allow_outside: also accept images outside the dataset.

  Raises:
    UserError: no annotations, a folder that does not exist, or an unreadable JSON.
  """
  images = _absolute(images)
  _check_folder(name, images, "--images")
  source, files = _locate(name, source, annotations)
  content = annotations_lib.read_annotations(files)
  _check_split(name, catalog.LAYOUTS[name], content)
  if images:
    roots, bases = _named_folders(images)
  else:
    roots = _dataset_folders(source, os.path.dirname(files[0]))
    bases = [os.path.join(root, folder) for root in roots for folder in ("imgs", "images", "")]
    bases = [os.path.normpath(base) for base in bases if os.path.isdir(base)]
  finder = _ImageFinder(roots, list(dict.fromkeys(bases)), allow_outside)
  return finder.find_all(name, content)


def missing_images(paths: Iterable[str], images: str) -> list[str]:
  """The paths for which `--images` would find no file; files outside the folder count as found.

  Args:
    paths: as the annotations have them.
    images: absolute path of the folder that they are relative to.
  """
  finder = _ImageFinder(*_named_folders(images), allow_outside=True)
  return [path for path in paths if finder.find(annotations_lib.normal_path(path)) is None]


def _named_folders(images: str) -> tuple[list[str], list[str]]:
  """The roots and bases of `_ImageFinder` for the folder given with --images."""
  return [images], [images, os.path.dirname(images)]


def annotation_files(
  name: str, *, source: str | None = None, annotations: str | None = None
) -> list[str]:
  """Absolute paths of the annotation files that `open_dataset` would read.

  Raises:
    UserError: there are none.
  """
  return _locate(name, source, annotations)[1]


def _locate(name: str, source: str | None, annotations: str | None) -> tuple[str | None, list[str]]:
  """The dataset's folder, None if only the annotations are named, and its annotation files."""
  source, annotations = _absolute(source), _absolute(annotations)
  if source and source.endswith(_JSON_ENDINGS) and os.path.isfile(source):
    source, annotations = None, annotations or source
  _check_folder(name, source, "--source")
  if annotations and not os.path.exists(annotations):
    raise UserError(f"{name}: no file {annotations} (--annotations): give the JSON's path")
  if annotations:
    return source, [annotations]
  if not source:
    raise UserError(
      f"{name}: give the folder of its files with --source FOLDER, or give --annotations FILE and "
      "--images FOLDER"
    )
  return source, _find_annotations(name, catalog.LAYOUTS[name], source)


def _absolute(path: str | None) -> str | None:
  return os.path.abspath(os.path.expanduser(path)) if path else None


def _check_folder(name: str, folder: str | None, flag: str) -> None:
  if folder and not os.path.isdir(folder):
    raise UserError(f"{name}: no folder {folder} ({flag}): give the folder of the files")


def _dataset_folders(source: str | None, json_folder: str) -> list[str]:
  """The folders that belong to a dataset: its own, that of its JSON, and the parent of the latter.

  The parent counts only if it is in the dataset's folder or the JSON's folder is "annotations";
  otherwise it could be a home folder, for example.
  """
  parent = os.path.dirname(json_folder)
  is_own = source and f"{parent}{os.sep}".startswith(f"{source}{os.sep}")
  has_annotations_folder = os.path.basename(json_folder).lower() == "annotations"
  folders = [source, json_folder, parent if is_own or has_annotations_folder else None]
  return list(dict.fromkeys(folder for folder in folders if folder))


class _ImageFinder:
  """Looks for image files in folders and refuses those that are not inside a dataset's folders."""

  def __init__(self, roots: Sequence[str], bases: Sequence[str], allow_outside: bool) -> None:
    """`bases` are searched; a file's real path must be inside the real path of one of `roots`."""
    self._roots = roots
    self._bases = bases
    self._allow_outside = allow_outside
    self._real_roots = tuple(os.path.realpath(root) for root in roots)
    # A thousand images share a folder, and resolving one takes a system call per level.
    self._real_folder = functools.cache(os.path.realpath)

  def find_all(self, name: str, content: annotations_lib.Annotations) -> DatasetFiles:
    """The files of a dataset; a record whose image is refused becomes an error."""
    refused = annotations_lib.RemarkCounter()
    records, paths = [], []
    for record in content.records:
      try:
        paths.append(self.find(record.path))
        records.append(record)
      except _OutsideError as error:
        remark = f"images outside {self._roots[0]} are refused{self._mend()}"
        refused.add(remark, f"{record.place}{error}")
    content = dataclasses.replace(
      content, records=tuple(records), errors=content.errors + refused.lines()
    )
    return DatasetFiles(name, content, tuple(self._bases), tuple(paths))

  def find(self, path: str) -> str | None:
    """The file of an image, None if no folder has it.

    Raises:
      _OutsideError: the file is outside the dataset.
    """
    target = None
    for file in self._candidates(path):
      try:
        mode = os.lstat(file).st_mode
        if stat.S_ISLNK(mode):
          real, is_file = os.path.realpath(file), os.path.isfile(file)
        else:
          folder, base = os.path.split(file)
          real, is_file = os.path.join(self._real_folder(folder), base), stat.S_ISREG(mode)
      except (OSError, ValueError):
        continue  # absent; ValueError: a null character, which no file name holds
      if is_file and (self._allow_outside or self._is_inside(real)):
        return file
      target = target or real
    if self._allow_outside:
      return None
    if target and not self._is_inside(target):
      raise _OutsideError(f" -> {target}")
    normal = [os.path.normpath(file) for file in self._candidates(path)]
    if any(self._is_inside(file, self._roots) for file in normal):
      return None
    raise _OutsideError()

  def _candidates(self, path: str) -> list[str]:
    # Names with accents exist composed and decomposed (macOS); the JSON may have the other form.
    spellings = dict.fromkeys((path, *(unicodedata.normalize(f, path) for f in ("NFC", "NFD"))))
    return [
      os.path.join(base, spelling)
      for spelling in spellings
      for base in self._bases
      # Outside the roots is only the parent of --images, for paths that repeat its name.
      if self._is_inside(base, self._roots) or path.startswith(f"{self._images_name()}/")
    ]

  def _images_name(self) -> str:
    return os.path.basename(self._roots[0])

  def _is_inside(self, file: str, roots: Sequence[str] | None = None) -> bool:
    roots = self._real_roots if roots is None else roots
    return any(file == root or file.startswith(root.rstrip(os.sep) + os.sep) for root in roots)

  def _mend(self) -> str:
    """How to accept the images, for the error message."""
    for base in self._bases:
      real = os.path.realpath(base)
      if self._is_inside(base, self._roots) and not self._is_inside(real):
        return f" ({os.path.basename(base)} is a link; if you trust it: --images {real})"
    return " (if you trust these annotations: --allow_outside)"


class _OutsideError(Exception):
  """An image outside the dataset; the text shows where its path leads."""


def _check_split(name: str, layout: catalog.Layout, content: annotations_lib.Annotations) -> None:
  """Raises UserError for a known file that holds the entries of a dataset without their split."""
  usual = next(iter(layout.annotation_names), "")
  is_without_split = not content.records and any(
    error.startswith(annotations_lib.WITHOUT_SPLIT) for error in content.errors
  )
  if is_without_split and usual and os.path.basename(content.files[0]) != usual:
    raise UserError(
      f"{name}: {content.files[0]} has no split; the split is in {usual}, which comes with the "
      "dataset: put it into the same folder, or give it with --annotations FILE"
    )


def _find_annotations(name: str, layout: catalog.Layout, source: str) -> list[str]:
  """The annotation files of a dataset; several only if they are named like splits."""
  folders = [source, os.path.join(source, layout.title)]
  folders += [os.path.join(folder, "annotations") for folder in folders]
  if layout.annotation_names:
    for folder in folders:
      for candidate in layout.annotation_names:
        if os.path.exists(os.path.join(folder, candidate)):
          return [os.path.join(folder, candidate)]
    present = [os.path.relpath(file, source) for folder in folders for file in _json_files(folder)]
    raise UserError(
      f"{name}: no {' or '.join(layout.annotation_names)} in {source} (JSON files in it: "
      f"{', '.join(present) or 'none'}); put it there or give --annotations FILE"
    )
  for folder in folders:
    files = _json_files(folder)
    stems = [os.path.splitext(os.path.basename(file))[0] for file in files]
    if len(files) == 1 or (files and all(annotation_formats.split_of(stem) for stem in stems)):
      return files
    if files:
      raise UserError(
        f"{name}: {len(files)} JSON files in {folder} "
        f"({', '.join(os.path.basename(file) for file in files[:6])}): name the "
        "annotations with --annotations FILE"
      )
  raise UserError(
    f"{name}: no JSON file in {source}: put the annotations there or give --annotations FILE"
  )


def _json_files(folder: str) -> list[str]:
  try:
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  except OSError as error:
    raise UserError(
      f"{folder} cannot be read ({error.strerror}): make the folder readable"
    ) from error
  return [
    os.path.join(folder, name)
    for name in names
    if name.lower().endswith(_JSON_ENDINGS) and not name.startswith(".")
  ]
