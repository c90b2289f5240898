"""The forms annotation files come in: any of them becomes a stream of single entries.

Also the names that fields and splits go by. Whether an entry makes sense is for `annotations`.
"""

import json
import os
from collections.abc import Iterator

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
_EXPECTED = (
  'expected a list of {"id", "img_path" (or "file_path"), "captions": [...], '
  '"split": "train" | "val" | "test"}'
)


def split_of(name: object) -> str | None:
  """The split that a name stands for ("validation" -> "val"), None when it stands for none."""
  return SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def read_entries(file: str) -> Iterator[tuple[str, object, str | None]]:
  """Yields (where it stands, the entry, the split its place implies) for every entry of a file.

  Accepted: a JSON list of objects; the same, one object a line; {"train": [...], ...}; one list
  under any key; {path: caption or captions} (a pre-training set: all train, ids unknown). Encodings
  are UTF-8, 16 or 32, with or without a byte order mark.

  Raises:
    UserError: the file cannot be read, is not JSON, or has none of these forms.
  """
  base = os.path.basename(file)
  data = _load_json(file)
  if isinstance(data, dict):
    if all(any(field in data for field in part) for part in (PATH_FIELDS, CAPTION_FIELDS)):
      data = [data]  # JSON lines with a single line
    elif data and all(split_of(key) and isinstance(part, list) for key, part in data.items()):
      for key, part in data.items():
        for i, entry in enumerate(part):
          yield f"{base} {key}[{i}]", entry, key
      return
    elif data and all(_is_caption(value) for value in data.values()):
      for path, captions in data.items():
        yield f"{base} {path}", {"img_path": path, "captions": captions}, "train"
      return
    else:
      lists = [v for v in data.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
      if len(lists) != 1:
        raise UserError(f"{file} is an object with keys {list(data)[:6]}: {_EXPECTED}")
      data = lists[0]
  if not isinstance(data, list) or not data:
    what = "an empty list" if data == [] else f"a single {type(data).__name__}"
    raise UserError(f"{file} is {what}: {_EXPECTED}")
  for i, entry in enumerate(data):
    yield f"{base} [{i}]", entry, None


def _is_caption(value: object) -> bool:
  return isinstance(value, str) or (
    isinstance(value, list) and all(isinstance(one, str) for one in value)
  )


def _load_json(file: str) -> object:
  """The content of a JSON or JSON lines file."""
  try:
    with open(file, "rb") as stream:
      raw = stream.read()
  except OSError as error:
    raise UserError(f"cannot read annotations {file}: {error.strerror}") from error
  try:
    text = raw.decode(json.detect_encoding(raw))
  except UnicodeDecodeError as error:
    raise UserError(
      f"{file} is not text ({error.reason} at byte {error.start}): save the JSON as UTF-8"
    ) from error
  try:
    return json.loads(text)
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
        entries.append(json.loads(line))
      except json.JSONDecodeError as error:
        raise UserError(
          f"{file} is neither JSON nor JSON lines: {error.msg} at line {number}, "
          f"column {error.colno}"
        ) from error
  return entries
