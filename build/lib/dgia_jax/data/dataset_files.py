"""A dataset as the user has it: where its annotations and images lie, and which files are missing.

The layout is forgiving, since archives unpack in many ways: the folder may be the dataset or its
parent, the images may lie in imgs/, images/ or beside the JSON. Both the checker and the builders
start from here.
"""

import dataclasses
import functools
import os
import unicodedata
from collections.abc import Sequence

from dgia_jax.data import annotation_formats, catalog
from dgia_jax.data import annotations as annotations_lib
from dgia_jax.errors import UserError

_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class DatasetFiles:
  """Annotations with the file of every image.

  Attributes:
    name: name of the dataset in `layouts.LAYOUTS`.
    annotations: the records and what was odd about them.
    image_folders: folders that were searched, in this order.
    paths: for each record the absolute path of its image, None when there is no such file.
  """

  name: str
  annotations: annotations_lib.Annotations
  image_folders: tuple[str, ...]
  paths: tuple[str | None, ...]

  @property
  def layout(self) -> catalog.Layout:
    return catalog.LAYOUTS[self.name]

  @property
  def image_folder(self) -> str:
    """The searched folder that the images are in (the first one, when none was found)."""
    first = next((path for path in self.paths if path), "")
    inside = (base for base in self.image_folders if first.startswith(base + os.sep))
    return next(inside, self.image_folders[0])

  def missing(self) -> list[annotations_lib.ImageRecord]:
    """The records without an image file."""
    rows = zip(self.annotations.records, self.paths, strict=True)
    return [record for record, path in rows if path is None]

  def missing_folders(self) -> dict[str, list[annotations_lib.ImageRecord]]:
    """Records without a file, by the topmost folder that does not exist.

    Records whose folders all exist are under "".
    """
    is_folder = functools.cache(
      lambda head: any(os.path.isdir(os.path.join(base, head)) for base in self.image_folders)
    )
    lost = {}
    for record in self.missing():
      parts = record.path.split("/")[:-1]
      heads = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
      lost.setdefault(next((h for h in heads if not is_folder(h)), ""), []).append(record)
    return lost


def open_dataset(
  name: str,
  *,
  source: str | None = None,
  annotations: str | None = None,
  images: str | None = None,
) -> DatasetFiles:
  """Finds and reads a dataset's annotations and looks for every image file.

  Args:
    name: a name in `layouts.LAYOUTS`.
    source: the dataset's folder (or the folder that holds it).
    annotations: the annotation file, where `source` alone does not tell.
    images: the folder that image paths are relative to; when given, only it and its parent (for
      paths that repeat its name) are searched.

  Returns:
    A `DatasetFiles`. Faulty entries and missing images are in it, they do not raise.

  Raises:
    UserError: no annotations, or a folder that does not exist, or an unreadable JSON.
  """
  layout = catalog.LAYOUTS[name]
  source, annotations, images = (
    os.path.abspath(os.path.expanduser(path)) if path else None
    for path in (source, annotations, images)
  )
  if source and source.endswith(_JSON_ENDINGS) and os.path.isfile(source):
    source, annotations = os.path.dirname(source), annotations or source
  for flag, folder in (("source", source), ("images", images)):
    if folder and not os.path.isdir(folder):
      raise UserError(f"{name}: no folder {folder} ({flag}): give the folder the files are in")
  if annotations and not os.path.isfile(annotations):
    raise UserError(f"{name}: no file {annotations} (annotations): give the JSON's path")
  if not annotations and not source:
    raise UserError(
      f"{name}: say where its files are with source=FOLDER, or with "
      "annotations=FILE and images=FOLDER"
    )
  files = [annotations] if annotations else _find_annotations(name, layout, source)
  if images:
    bases = [images, os.path.dirname(images)]
  else:
    beside = os.path.dirname(files[0])
    roots = [source, beside, os.path.dirname(beside)] if source else [beside]
    bases = [os.path.join(root, sub) for root in roots if root for sub in ("imgs", "images", "")]
  bases = list(dict.fromkeys(os.path.normpath(base) for base in bases if os.path.isdir(base)))
  content = annotations_lib.read_annotations(files)
  return DatasetFiles(
    name=name,
    annotations=content,
    image_folders=tuple(bases),
    paths=tuple(_find_image(record.path, bases) for record in content.records),
  )


def _find_annotations(name: str, layout: catalog.Layout, source: str) -> list[str]:
  """The annotation files of a dataset; several only when they are named like splits."""
  folders = [source, os.path.join(source, layout.title)]
  folders += [os.path.join(folder, "annotations") for folder in folders]
  if layout.annotation_names:
    for folder in folders:
      for candidate in layout.annotation_names:
        if os.path.isfile(os.path.join(folder, candidate)):
          return [os.path.join(folder, candidate)]
    there = [os.path.relpath(file, source) for folder in folders for file in _json_files(folder)]
    raise UserError(
      f"{name}: no {' or '.join(layout.annotation_names)} in {source} (JSON files "
      f"there: {', '.join(there) or 'none'}); put it there or name it with "
      "annotations=FILE"
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
        "annotations with annotations=FILE"
      )
  raise UserError(
    f"{name}: no JSON file in {source}: put the annotations there or name them with "
    "annotations=FILE"
  )


def _json_files(folder: str) -> list[str]:
  names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  return [
    os.path.join(folder, name)
    for name in names
    if name.lower().endswith(_JSON_ENDINGS) and not name.startswith(".")
  ]


def _find_image(path: str, bases: Sequence[str]) -> str | None:
  """The file of an image path, None when no base folder has it."""
  # Names with accents exist composed and decomposed (macOS); a JSON may have the other form.
  spellings = dict.fromkeys((path, *(unicodedata.normalize(f, path) for f in ("NFC", "NFD"))))
  for spelling in spellings:
    for base in bases:
      file = os.path.join(base, spelling)
      try:
        if os.path.isfile(file):
          return file
      except ValueError:
        continue  # a NUL or a lone surrogate: no file system has such a name
  return None
