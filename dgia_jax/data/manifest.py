"""Writes the annotations of your own data, from the forms that `manifest_readers` lists."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dgia_jax import files, user_files
from dgia_jax.data.annotation_formats import shown, split_of
from dgia_jax.data.annotations import SPLITS
from dgia_jax.data.dataset_files import missing_images
from dgia_jax.data.image_store import ImageStore
from dgia_jax.data.manifest_readers import READERS, Columns, Example, form_of
from dgia_jax.errors import UserError

FILE = "annotations.json"
IMAGES = "images"


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A written manifest.

  Attributes:
    file: the JSON file.
    images: the folder that its paths are relative to.
    entries: number of images per split.
    without_caption: number of images that were left out because they have no caption.
    missing: the paths in `file` of which `images` has no file.
  """

  file: pathlib.Path
  images: pathlib.Path
  entries: dict[str, int]
  without_caption: int
  missing: Sequence[str]


def make(
  source: str,
  out: pathlib.Path | str,
  *,
  form: str = "",
  columns: Columns | None = None,
  images: str = "",
  fractions: Sequence[float] = (),
  seed: int = 0,
) -> Manifest:
  """Writes `out`/annotations.json for a source of images with captions.

  Images that are files stay in their places. Images inside Parquet or tar files are written to
  `out`/images, equal ones once. An error or Ctrl-C leaves nothing of them behind.

  Args:
    source: a file or folder in one of the forms of `manifest_readers.READERS`.
    out: folder for the result.
    form: of the source; "" = known from its files.
    columns: of tables, Parquet files and the JSON files of shards.
    images: folder that image paths are relative to; "" = the source, or the folder it is in.
    fractions: of the people in train, val and test; () = the source has splits. With fractions all
      images of a person are in one split; an image without identity counts as a person.
    seed: of the assignment of people to splits.

  Raises:
    UserError: the source cannot be read, has no split, or none of the files that it names exists,
      or `images` is no folder, or `out` already has annotations, or images where some would be
      written; or one of the three is not on this machine.
  """
  out = user_files.local_path(out, "--out").absolute()
  source = os.path.abspath(user_files.local_path(source, "source"))
  file = out / FILE
  if user_files.exists(file, "--out"):
    raise UserError(f"{file} exists already: choose another --out, or delete it")
  if images:
    images = os.path.abspath(user_files.local_path(images, "--images"))
    if not os.path.isdir(images):
      raise UserError(f"no folder {images} (--images)")
  reader = READERS[form or form_of(source)]
  folder = pathlib.Path(images or (source if os.path.isdir(source) else os.path.dirname(source)))
  entry_of: dict[tuple, dict[str, Any]] = {}
  paths: dict[str, None] = {}  # of files, each once, in order
  without_caption, store = 0, ImageStore(out / IMAGES)
  try:
    for example in reader(source, columns or Columns()):
      if not any(caption.strip() for caption in example.captions):
        without_caption += 1
        continue
      if not fractions:
        _check_split(example, source)
      if isinstance(example.image, bytes):
        path = store.add(example.image)
      else:
        path = example.image
        paths[path] = None
      entry = entry_of.setdefault((path, example.person, example.split), _entry(path, example))
      entry["captions"] += [text for text in map(str.strip, example.captions) if text]
    entries = list(entry_of.values())
    if not entries:
      raise UserError(f"{source} has no image with a caption ({without_caption} without)")
    folder = out / IMAGES if store.is_used else folder
    missing = missing_images(paths, str(folder))
    if missing and len(missing) == len(paths) and not store.is_used:
      raise UserError(
        f"{source}: none of its {len(paths)} images is in {folder}, first {missing[0]}: give the"
        " folder that these paths are relative to with --images FOLDER"
      )
    _assign_splits(entries, fractions, seed)
    out.mkdir(parents=True, exist_ok=True)
    store.publish()
    files.write_text(file, json.dumps(entries, indent=1) + "\n")
  except BaseException as error:
    if not file.exists():  # else Ctrl-C came after the last step
      store.discard()
    if not isinstance(error, OSError):
      raise
    raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
  return Manifest(
    file=file,
    images=folder,
    entries={split: sum(e["split"] == split for e in entries) for split in SPLITS},
    without_caption=without_caption,
    missing=missing,
  )


def split_people(people: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, str]:
  """Assigns each distinct person to a split; depends only on the set of people and the seed."""

  # A hash, not a random generator: no library version can change the assignment.
  def rank(person: str) -> bytes:
    # Names of folders that are not UTF-8 hold lone surrogates.
    return hashlib.sha256(f"{seed}:{person}".encode("utf-8", "surrogatepass")).digest()

  order = sorted(set(people), key=rank)
  total, ends = 0.0, []
  for fraction in fractions:
    total += fraction
    ends.append(round(total * len(order)))
  starts = [0, *ends[:-1]]
  return {
    person: split
    for split, start, end in zip(SPLITS, starts, ends, strict=True)
    for person in order[start:end]
  }


def parse_fractions(text: str) -> tuple[float, ...]:
  """(0.8, 0.1, 0.1) for "0.8,0.1,0.1": the fractions of train, val and test.

  Raises:
    UserError: they are not three numbers of 0 or more that add up to 1.
  """
  try:
    fractions = tuple(float(part) for part in text.split(","))
  except ValueError:
    fractions = ()
  if len(fractions) != 3 or not all(f >= 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
    raise UserError(
      f"--split {text}: give the fractions of train, val and test, such as 0.8,0.1,0.1"
    )
  return fractions


def _entry(path: str, example: Example) -> dict[str, Any]:
  """The entry of an image, still without captions: tables may have a row per caption."""
  entry: dict[str, Any] = {"img_path": path, "captions": [], "split": example.split}
  return entry if example.person is None else {"id": example.person, **entry}


def _check_split(example: Example, source: str) -> None:
  """Raises UserError for an example that is in none of the three splits."""
  if split_of(example.split) is None:
    image = example.image
    if isinstance(image, bytes):
      image = f"the image with the caption {shown(next(filter(str.strip, example.captions)))}"
    value = "no split" if example.split is None else f"the split {example.split!r}"
    raise UserError(f"{source}: {image} has {value}; divide the people with --split 0.8,0.1,0.1")


def _assign_splits(
  entries: Sequence[dict[str, Any]], fractions: Sequence[float], seed: int
) -> None:
  """Gives every entry one of the three splits."""
  if fractions:
    people = [
      str(entry["id"]) if "id" in entry else f"image {entry['img_path']}" for entry in entries
    ]
    split_of_person = split_people(people, fractions, seed)
    for entry, person in zip(entries, people, strict=True):
      entry["split"] = split_of_person[person]
    return
  for entry in entries:
    entry["split"] = split_of(entry["split"])
