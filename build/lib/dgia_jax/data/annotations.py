"""Annotation files: JSON in, checked records out.

Everything an entry may say differently is settled here, once: ids that are strings, captions that
are not in a list, images named twice. What can be understood is taken and noted; what cannot is an
error that names the entry. Nothing here looks at an image file.
"""

import dataclasses
import math
import os
import posixpath
from collections.abc import Sequence

from dgia_jax.data.annotation_formats import (
  CAPTION_FIELDS,
  PATH_FIELDS,
  SPLIT_NAMES,
  read_entries,
  split_of,
)

SPLITS = ("train", "val", "test")
_ID_FIELDS = ("id", "person_id", "pid")
_INT64 = range(-(2**63), 2**63)


@dataclasses.dataclass(frozen=True)
class ImageRecord:
  """One image as annotated: path as written ("/" between folders), captions, person id, split."""

  path: str
  captions: tuple[str, ...]
  person: int
  split: str


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The records of a dataset in the order of the file, and what was odd about them.

  Attributes:
    files: the JSON files that were read.
    records: one for each image, with at least one caption.
    identities: "known"; "unknown" when no entry has an id; "partly known". An image without an id
      is given a person id of its own, above all others.
    errors: entries that cannot be used, one line for each kind; `records` is without them.
    notes: what was repaired or left out, one line for each kind.
  """

  files: tuple[str, ...]
  records: tuple[ImageRecord, ...]
  identities: str
  errors: tuple[str, ...]
  notes: tuple[str, ...]


class _Tally:
  """Counts each kind of remark and keeps the first places it was made at."""

  def __init__(self):
    self._places = {}

  def add(self, remark: str, place: str):
    self._places.setdefault(remark, []).append(place)

  def lines(self) -> tuple[str, ...]:
    return tuple(
      f"{remark}: {len(places)} (first: {'; '.join(places[:3])})"
      for remark, places in self._places.items()
    )


def read_annotations(files: Sequence[str | os.PathLike]) -> Annotations:
  """Reads and checks annotation files.

  The forms a file may have are those of `entries.read_entries`. With several files, an entry
  without "split" takes the name of its file (train.json) when that names a split.

  Args:
    files: paths of the JSON files, read in this order as one dataset.

  Returns:
    `Annotations`; faults of single entries are in its `errors`, they do not raise.

  Raises:
    UserError: a file cannot be read, is not JSON, or has none of the forms above.
  """
  errors, notes = _Tally(), _Tally()
  drafts = {}
  for file in files:
    file = os.fspath(file)
    stem = split_of(os.path.splitext(os.path.basename(file))[0]) if len(files) > 1 else None
    for place, entry, split in read_entries(file):
      try:
        draft = _read_entry(entry, split or stem, place, notes)
      except _BadEntryError as bad:
        errors.add(str(bad), bad.place or place)
        continue
      known = drafts.setdefault(draft.path, draft)
      if known is not draft:
        _merge(known, draft, errors, notes)
  kept = [draft for draft in drafts.values() if draft.captions]
  for draft in drafts.values():
    if not draft.captions:
      notes.add("images left out because they have no caption", draft.path)
  people = _person_numbers([draft.person for draft in kept])
  unknown = sum(draft.person is None for draft in kept)
  if unknown and unknown < len(kept):
    notes.add("images without 'id', each taken as a person of its own", f"{unknown} images")
  return Annotations(
    files=tuple(os.fspath(file) for file in files),
    records=tuple(
      ImageRecord(draft.path, tuple(draft.captions), person, draft.split)
      for draft, person in zip(kept, people, strict=True)
    ),
    identities="known" if not unknown else "unknown" if unknown == len(kept) else "partly known",
    errors=errors.lines(),
    notes=notes.lines(),
  )


class _BadEntryError(Exception):
  """An entry that cannot be used: what is wrong (without its place), and its place."""

  def __init__(self, remark: str, place: str | None = None):
    super().__init__(remark)
    self.place = place


@dataclasses.dataclass
class _Draft:
  path: str
  captions: list[str]
  person: str | None
  split: str


def _read_entry(entry: object, split: str | None, place: str, notes: _Tally) -> _Draft:
  """One entry of a file as a draft of a record, or _BadEntryError."""
  if not isinstance(entry, dict):
    raise _BadEntryError("entries that are not objects")
  path = _first(entry, PATH_FIELDS)
  if not isinstance(path, str) or not path.strip():
    raise _BadEntryError("entries without an image path ('img_path' or 'file_path')")
  # Windows tools write "\\", which no dataset has inside a file name.
  path = posixpath.normpath(_whole(path).replace("\\", "/"))
  place = f"{place}, {path}"
  said = entry.get("split")
  if said is None or said == "":
    if split is None:
      raise _BadEntryError('entries without "split" ("train", "val" or "test")', place)
    said = split
  name = split_of(said)
  if name is None:
    raise _BadEntryError(
      f"entries whose split is none of {', '.join(SPLIT_NAMES)}", f"{place}, split {said!r}"
    )
  if isinstance(said, str) and said.strip() != name:
    notes.add(f"split name {said.strip()!r} read as {name!r}", place)
  captions = _first(entry, CAPTION_FIELDS)
  captions = captions if isinstance(captions, list) else [captions]
  if not all(caption is None or isinstance(caption, str) for caption in captions):
    raise _BadEntryError("entries with captions that are not text", place)
  return _Draft(path, _clean(captions, place, notes), _person_key(entry, place), name)


def _first(entry: dict, fields: Sequence[str]) -> object:
  return next((entry[field] for field in fields if entry.get(field) is not None), None)


def _clean(captions: list[str | None], place: str, notes: _Tally) -> list[str]:
  """Captions without the empty ones and without code points that UTF-8 cannot hold."""
  kept = []
  for caption in captions:
    if not caption or not caption.strip():
      notes.add("empty captions left out", place)
      continue
    whole = _whole(caption)
    if whole != caption:
      notes.add("captions with broken characters, replaced by '?'", place)
    kept.append(whole.strip())
  return kept


def _whole(text: str) -> str:
  """Text with "?" for halves of characters, which JSON can spell but UTF-8 cannot."""
  return text.encode("utf-8", "replace").decode()


def _person_key(entry: dict, place: str) -> str | None:
  """The id of an entry as text, None when it is absent."""
  value = _first(entry, _ID_FIELDS)
  if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
    # What tables make of integers next to empty cells.
    value = None if math.isnan(value) else int(value)
  if isinstance(value, bool) or not (value is None or isinstance(value, int | str)):
    raise _BadEntryError("entries whose 'id' is neither a whole number nor text", place)
  return None if value is None or str(value).strip() == "" else str(value).strip()


def _merge(known: _Draft, again: _Draft, errors: _Tally, notes: _Tally):
  """Adds a second entry for one image to the first."""
  if again.person != known.person:
    errors.add(
      "images named twice with different ids",
      f"{known.path}, ids {known.person} and {again.person}",
    )
  elif again.split != known.split:
    errors.add(
      "images named twice in different splits", f"{known.path}, {known.split} and {again.split}"
    )
  else:
    known.captions += [caption for caption in again.captions if caption not in known.captions]
    notes.add("images named more than once, their captions put together", known.path)


def _person_numbers(keys: Sequence[str | None]) -> list[int]:
  """int64 ids for ids given as text: their value if all are plain integers, else their rank.

  The rank is taken among the sorted distinct ids, so it depends on the dataset alone. None gets a
  number of its own, above all others.
  """
  known = {key for key in keys if key is not None}
  if all(_is_plain_integer(key) for key in known):
    numbers = {key: int(key) for key in known}
  else:
    numbers = {key: rank for rank, key in enumerate(sorted(known))}
  free = max(numbers.values(), default=-1) + 1
  if free + len(keys) not in _INT64:
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
    and int(key) in _INT64
  )
