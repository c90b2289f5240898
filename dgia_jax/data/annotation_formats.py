"""The forms of annotation files: each of them becomes a stream of entries.

Also the accepted names of fields and splits. `annotations` decides whether an entry is valid.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dgia_jax import user_files
from dgia_jax.errors import UserError

SPLIT_NAMES = {
  "train": "train",
  "training": "train",
  "val": "val",
  "validation": "val",
  "valid": "val",
  "dev": "val",
  "test": "test",
  "testing": "test",
  "query": "test",
  "gallery": "test",
}
PATH_FIELDS = ("img_path", "file_path", "image_path", "image", "file_name", "filename", "path")
CAPTION_FIELDS = ("captions", "caption", "text")
ID_FIELDS = ("id", "person_id", "pid")
INT64 = range(-(2**63), 2**63)
_EXPECTED = (
  'expected a list of {"id", "img_path" (or "file_path"), "captions": [...], '
  '"split": "train" | "val" | "test"}'
)


class Entry(NamedTuple):
  """One item of an annotation file.

  Attributes:
    place: the file's name and the position of the item in it, for messages.
    content: the item as JSON has it, normally a dict.
    split: the split that the position implies, None if it implies none.
  """

  place: str
  content: Any
  split: str | None


@dataclasses.dataclass(frozen=True)
class HugeInteger:
  """Stands for an integer that does not fit into 64 bits, so that its entry can be named."""


class RepeatedKey(dict[str, Any]):
  """An object of a JSON file that has `key` more than once, so that its entry can be named."""

  key: str


def split_of(name: object) -> str | None:
  """The split that a name stands for ("validation" -> "val"), None if it stands for none."""
  return SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def read_entries(file: str) -> Iterator[Entry]:
  """Yields every entry of an annotation file.

  Accepted: a JSON list of objects; one object per line; {"train": [...], ...}; one list under any
  key; {path: caption or captions}, a pre-training set without ids, all of it train. Encodings are
  UTF-8, 16 or 32, with or without a byte order mark.

  Raises:
    UserError: the file cannot be read, is not JSON, or has none of these forms.
  """
  base = os.path.basename(file)
  data = _load_json(file)
  if isinstance(data, dict):
    if all(any(field in data for field in part) for part in (PATH_FIELDS, CAPTION_FIELDS)):
      data = [data]  # JSON lines with a single line
    elif isinstance(data, RepeatedKey):
      raise UserError(f"{file} has the key {shown(data.key)} twice: give every key once")
    elif data and all(split_of(key) and isinstance(part, list) for key, part in data.items()):
      for key, part in data.items():
        for i, content in enumerate(part):
          yield Entry(f"{base} {key}[{i}]", content, key)
      return
    elif data and all(_is_caption(value) for value in data.values()):
      for path, captions in data.items():
        yield Entry(f"{base} {path}", {"img_path": path, "captions": captions}, "train")
      return
    else:
      lists = [v for v in data.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
      if len(lists) != 1:
        keys = ", ".join(map(shown, list(data)[:6]))
        raise UserError(f"{file} is an object with the keys {keys or '(none)'}: {_EXPECTED}")
      data = lists[0]
  if not isinstance(data, list) or not data:
    form = "an empty list" if data == [] else f"a single {type(data).__name__}"
    raise UserError(f"{file} is {form}: {_EXPECTED}")
  for i, content in enumerate(data):
    yield Entry(f"{base} [{i}]", content, None)


def shown(value: object) -> str:
  """A value for a message: text and numbers, shortened to 40 characters, else only the type."""
  if value is None or isinstance(value, bool | int | float | str):
    text = repr(value[:40] if isinstance(value, str) else value)
    return text + ("..." if isinstance(value, str) and len(value) > 40 else "")
  return f"a {type(value).__name__}"


def _is_caption(value: object) -> bool:
  return isinstance(value, str) or (
    isinstance(value, list) and all(isinstance(one, str) for one in value)
  )


def _load_json(file: str) -> object:
  """The content of a JSON or JSON lines file."""
  user_files.check_regular(pathlib.Path(file), "--annotations")
  try:
    raw = pathlib.Path(file).read_bytes()
  except OSError as error:
    raise UserError(f"cannot read annotations {file}: {error.strerror}") from error
  try:
    text = raw.decode(json.detect_encoding(raw))
  except UnicodeDecodeError as error:
    raise UserError(
      f"{file} is not text ({error.reason} at byte {error.start}): save the JSON as UTF-8"
    ) from error
  try:
    return _parse(text, file)
  except json.JSONDecodeError as error:
    whole = error
  if whole.msg != "Extra data":
    raise UserError(
      f"{file} is not valid JSON: {whole.msg} at line {whole.lineno}, column {whole.colno}"
    ) from whole
  entries = []
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        entries.append(_parse(line, f"{file}, line {number},"))
      except json.JSONDecodeError as error:
        raise UserError(
          f"{file} is neither JSON nor JSON lines: {error.msg} at line {number}, "
          f"column {error.colno}"
        ) from error
  return entries


def _parse(text: str, place: str) -> object:
  try:
    return json.loads(text, parse_int=_parse_integer, object_pairs_hook=_parse_object)
  except RecursionError as error:
    raise UserError(
      f"{place} is nested too deeply to be read: annotations are a list of flat objects"
    ) from error


def _parse_integer(digits: str) -> int | HugeInteger:
  # Python refuses to convert 4,300 digits and more.
  number = int(digits) if len(digits) <= 20 else INT64.stop
  return number if number in INT64 else HugeInteger()


def _parse_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  content = dict(pairs)
  if len(content) < len(pairs):
    content = RepeatedKey(content)
    content.key, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
  return content
