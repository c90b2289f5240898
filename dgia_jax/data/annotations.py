"""Reads annotation files into checked records.

All variations between files are resolved here: ids that are text, captions outside a list, images
named twice. What can be interpreted is accepted and noted; anything else is an error that names the
entry. Image files are not opened here.
"""

import dataclasses
import math
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from dgia_jax.data.annotation_formats import (
  CAPTION_FIELDS,
  ID_FIELDS,
  INT64,
  PATH_FIELDS,
  SPLIT_NAMES,
  Entry,
  HugeInteger,
  RepeatedKey,
  read_entries,
  shown,
  split_of,
)
from dgia_jax.errors import printable

SPLITS = ("train", "val", "test")
WITHOUT_SPLIT = 'entries without "split" ("train", "val" or "test")'


@dataclasses.dataclass(frozen=True)
class ImageRecord:
  """One annotated image.

  Attributes:
    path: of the image as written in the file, with "/" between folders.
    captions: at least one.
    person: the identity label.
    split: "train", "val" or "test".
    place: where the annotation was read, for messages.
  """

  path: str
  captions: tuple[str, ...]
  person: int
  split: str
  place: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The records of a dataset in the order of the file, with the remarks made while reading.

  Attributes:
    files: the JSON files that were read.
    records: one per image.
    identities: "known"; "unknown" when no entry has an id; "partly known". An image without an id
      gets a person number of its own, above all others.
    errors: entries that cannot be used, one line per kind; `records` does not contain them.
    notes: repairs and omissions, one line per kind.
  """

  files: tuple[str, ...]
  records: tuple[ImageRecord, ...]
  identities: str
  errors: tuple[str, ...]
  notes: tuple[str, ...]


class RemarkCounter:
  """Counts each kind of remark and keeps the places it applies to."""

  def __init__(self) -> None:
    self._places: dict[str, list[str]] = {}

  def add(self, remark: str, place: str) -> None:
    """Counts one occurrence of a remark."""
    self._places.setdefault(remark, []).append(place)

  def lines(self) -> tuple[str, ...]:
    """One line per kind of remark, with its count and its first three places."""
    return tuple(
      printable(f"{remark}: {len(places)} (first: {'; '.join(places[:3])})")
      for remark, places in self._places.items()
    )


def read_annotations(files: Sequence[str | os.PathLike]) -> Annotations:
  """Reads annotation files, in this order, as one dataset.

  `annotation_formats.read_entries` lists the accepted forms. With several files, an entry without
  "split" takes its split from the name of its file, such as train.json.

  Faults of single entries do not raise; they are in `Annotations.errors`.

  Raises:
    UserError: a file cannot be read, is not JSON, or has none of the accepted forms.
  """
  errors, notes = RemarkCounter(), RemarkCounter()
  images: dict[str, _AnnotatedImage] = {}
  for file in map(os.fspath, files):
    stem = split_of(os.path.splitext(os.path.basename(file))[0]) if len(files) > 1 else None
    for entry in read_entries(file):
      try:
        image = _read_entry(entry, entry.split or stem, notes)
      except _InvalidEntryError as invalid:
        errors.add(str(invalid), invalid.place)
        continue
      first = images.setdefault(image.path, image)
      if first is not image:
        _merge(first, image, errors, notes)
  _check_id_types(images, errors)
  kept = [image for image in images.values() if image.captions]
  for image in images.values():
    if not image.captions:
      notes.add("images left out because they have no caption", image.path)
  people = _person_numbers([image.person for image in kept])
  unknown = sum(image.person is None for image in kept)
  if unknown and unknown < len(kept):
    notes.add("images without 'id', each taken as a person of its own", f"{unknown} images")
  return Annotations(
    files=tuple(os.fspath(file) for file in files),
    records=tuple(
      ImageRecord(image.path, tuple(image.captions), person, image.split, image.place)
      for image, person in zip(kept, people, strict=True)
    ),
    identities="known" if not unknown else "unknown" if unknown == len(kept) else "partly known",
    errors=errors.lines(),
    notes=notes.lines(),
  )


class _InvalidEntryError(Exception):
  """An entry that cannot be used: the kind of fault, and the place."""

  def __init__(self, remark: str, place: str) -> None:
    super().__init__(remark)
    self.place = place


@dataclasses.dataclass
class _AnnotatedImage:
  """An image before its person has a number: the id is still text, None if absent."""

  path: str
  captions: list[str]
  person: str | None
  has_numeric_id: bool
  split: str
  place: str


def _read_entry(entry: Entry, split: str | None, notes: RemarkCounter) -> _AnnotatedImage:
  """Raises _InvalidEntryError when the entry cannot be used."""
  content, place = entry.content, entry.place
  if not isinstance(content, dict):
    raise _InvalidEntryError("entries that are not objects", place)
  if isinstance(content, RepeatedKey):
    place = f"{place}, key {shown(content.key)}"
    raise _InvalidEntryError("entries that have a key twice", place)
  path = _first_value(content, PATH_FIELDS)
  if not isinstance(path, str) or not path.strip():
    raise _InvalidEntryError("entries without an image path ('img_path' or 'file_path')", place)
  path = normal_path(path)
  place = f"{place}, {path}"
  captions = _first_value(content, CAPTION_FIELDS)
  captions = captions if isinstance(captions, list) else [captions]
  if not all(caption is None or isinstance(caption, str) for caption in captions):
    raise _InvalidEntryError("entries with captions that are not text", place)
  value = _first_value(content, ID_FIELDS)
  person = _person_key(value, place)
  return _AnnotatedImage(
    path=path,
    split=_read_split(content.get("split"), split, place, notes),
    captions=_usable_captions(captions, place, notes),
    person=person,
    has_numeric_id=person is not None and not isinstance(value, str),
    place=place,
  )


def normal_path(path: str) -> str:
  """The path of an image as records have it."""
  # Windows tools write "\\", which no dataset has inside a file name.
  return posixpath.normpath(_without_surrogates(path).replace("\\", "/"))


def _first_value(content: Mapping[str, Any], fields: Sequence[str]) -> Any:
  return next((content[field] for field in fields if content.get(field) is not None), None)


def _read_split(value: object, default: str | None, place: str, notes: RemarkCounter) -> str:
  if value is None or value == "":
    if default is None:
      raise _InvalidEntryError(WITHOUT_SPLIT, place)
    value = default
  split = split_of(value)
  if split is None:
    raise _InvalidEntryError(
      f"entries whose split is none of {', '.join(SPLIT_NAMES)}", f"{place}, split {shown(value)}"
    )
  if isinstance(value, str) and value.strip() != split:
    notes.add(f"split name {value.strip()!r} read as {split!r}", place)
  return split


def _usable_captions(captions: Sequence[str | None], place: str, notes: RemarkCounter) -> list[str]:
  """The captions that hold text, without code points that UTF-8 cannot encode."""
  kept = []
  for caption in captions:
    if not caption or _is_blank(caption):
      notes.add("blank captions left out", place)
      continue
    whole = _without_surrogates(caption)
    if whole != caption:
      notes.add("captions with broken characters, replaced by '?'", place)
    kept.append(whole.strip())
  return kept


def _is_blank(caption: str) -> bool:
  """Whether the tokenizer would find no text in a caption."""
  if "&" not in caption and any(c.isascii() and c.isalnum() for c in caption):
    return False  # almost every caption; the tokenizer's cleaning is slow
  from dgia_jax.data.text_cleaning import clean_caption

  clean = clean_caption(_without_surrogates(caption))
  return not any(c.isprintable() and not c.isspace() for c in clean)


def _without_surrogates(text: str) -> str:
  """Text with "?" for lone surrogates, which JSON can spell but UTF-8 cannot encode."""
  return text.encode("utf-8", "replace").decode()


def _person_key(value: object, place: str) -> str | None:
  """The id of an entry as text, None if it is absent."""
  if isinstance(value, float) and math.isnan(value):
    return None  # tables write an empty cell so
  if isinstance(value, float) and value.is_integer():
    value = int(value)  # tables turn integers next to empty cells into floats
  if isinstance(value, HugeInteger) or (isinstance(value, int) and value not in INT64):
    raise _InvalidEntryError(
      "entries whose 'id' does not fit into 64 bits (write such ids as text)", place
    )
  if isinstance(value, bool) or not (value is None or isinstance(value, int | str)):
    raise _InvalidEntryError("entries whose 'id' is neither a whole number nor text", place)
  return None if value is None or str(value).strip() == "" else str(value).strip()


def _merge(
  first: _AnnotatedImage, second: _AnnotatedImage, errors: RemarkCounter, notes: RemarkCounter
) -> None:
  """Adds the second entry of an image to the first."""
  if second.person != first.person:
    errors.add(
      "images named twice with different ids",
      f"{first.path}, ids {first.person} and {second.person}",
    )
  elif second.split != first.split:
    errors.add(
      "images named twice in different splits", f"{first.path}, {first.split} and {second.split}"
    )
  else:
    first.captions += [caption for caption in second.captions if caption not in first.captions]
    notes.add("images named more than once, their captions put together", first.path)


def _check_id_types(images: dict[str, _AnnotatedImage], errors: RemarkCounter) -> None:
  """Removes images whose id is text, such as "007", in a dataset whose other ids are numbers.

  Whether 7 and "007" are one person cannot be known. The text "7" counts as the number.
  """
  if not any(image.has_numeric_id for image in images.values()):
    return
  for path, image in list(images.items()):
    if image.person is not None and not _is_plain_integer(image.person):
      errors.add(
        "entries whose 'id' is text in a file that also has numbers (use one of them)",
        f"{image.place}, id {shown(image.person)}",
      )
      del images[path]


def _person_numbers(keys: Sequence[str | None]) -> list[int]:
  """int64 numbers for ids given as text: their value if all are plain integers, else their rank.

  The rank among the sorted distinct ids depends on the dataset only, not on the order of entries.
  Each None gets a number of its own, above all others.
  """
  known = {key for key in keys if key is not None}
  if all(_is_plain_integer(key) for key in known):
    numbers = {key: int(key) for key in known}
  else:
    numbers = {key: rank for rank, key in enumerate(sorted(known))}
  free = max(numbers.values(), default=-1) + 1
  if free + len(keys) not in INT64:
    numbers = {key: rank for rank, key in enumerate(sorted(known, key=int))}
    free = len(numbers)
  people = []
  for key in keys:
    people.append(free if key is None else numbers[key])
    free += key is None
  return people


def _is_plain_integer(key: str) -> bool:
  digits = key.removeprefix("-")
  return (
    digits.isascii()
    and digits.isdigit()
    and len(digits) < 20
    and str(int(key)) == key
    and int(key) in INT64
  )
