"""Reads images with captions from the forms that other tools write, for `manifest`.

| form | what it is |
|---|---|
| `table` | a CSV or TSV file, or JSON, with columns of image paths and captions |
| `folders` | one folder per person; the captions of x.jpg are the lines of x.txt |
| `imagefolder` | Hugging Face: metadata.csv or metadata.jsonl in a folder or in its split folders |
| `parquet` | Parquet files with images inside, or with their paths |
| `webdataset` | tar shards: files of one name are one example (x.jpg, x.txt or x.json) |
"""

import csv
import dataclasses
import io
import json
import lzma
import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from dgia_jax import user_files
from dgia_jax.data import annotation_formats, catalog, folder_walk
from dgia_jax.data.annotation_formats import CAPTION_FIELDS, ID_FIELDS, PATH_FIELDS, split_of
from dgia_jax.errors import UserError

_NUMBERED_CAPTION = re.compile(r"(captions?|text|description)_?\d+", re.IGNORECASE)
_METADATA = ("metadata.csv", "metadata.jsonl")
# Only these end a line of a text; `str.splitlines` also splits at U+2028, form feeds and others.
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of columns or keys; an empty one is found by its usual names.

  Attributes:
    image: path or content of the image.
    captions: a caption each, or lists of captions.
    person: identity label, optional in the data.
    split: "train", "val" or "test", optional in the data.
  """

  image: str = ""
  captions: Sequence[str] = ()
  person: str = ""
  split: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
  """One image with its captions, as a source has them.

  Attributes:
    image: the path below the image folder, or the content of the file.
    captions: as they are, possibly blank.
    person: identity label, None if absent.
    split: name of the split as the source has it, None if absent.
  """

  image: str | bytes
  captions: Sequence[str]
  person: int | str | None
  split: str | None


def form_of(source: str) -> str:
  """The form of a file or folder, one of `READERS`.

  Raises:
    UserError: the source does not exist, or is a file of another kind.
  """
  if os.path.isdir(source):
    if any(_metadata_files(source)):
      return "imagefolder"
    for form, ending in (("parquet", ".parquet"), ("webdataset", ".tar")):
      if _files(source, ending):
        return form
    return "folders"
  if not os.path.exists(source):
    raise UserError(f"no file or folder {source}")
  ending = os.path.splitext(source)[1].lower()
  forms = {".parquet": "parquet", ".tar": "webdataset"}
  forms |= dict.fromkeys((".csv", ".tsv", ".json", ".jsonl", ".ndjson"), "table")
  if ending not in forms:
    raise UserError(f"{source}: the ending tells no form; choose one with --form")
  return forms[ending]


def read_table(source: str, columns: Columns) -> Iterator[Example]:
  """Examples of a CSV, TSV, JSON or JSON lines file; images are paths."""
  yield from _examples_of_rows(_table_rows(source), columns)


def read_folders(source: str, columns: Columns) -> Iterator[Example]:
  """Examples of FOLDER/PERSON/x.jpg with x.txt, or FOLDER/SPLIT/PERSON/x.jpg; images are paths."""
  del columns
  _check_folder(source, "folders")
  for folder, names in folder_walk.walk(source, _stop_at):
    relative = os.path.relpath(folder, source)
    parts = [] if relative == os.curdir else relative.split(os.sep)
    split = parts[0] if parts and split_of(parts[0]) else None
    person = "/".join(parts[1:] if split else parts)
    for name in sorted(names):
      stem, ending = os.path.splitext(name)
      if ending.lower() in catalog.IMAGE_ENDINGS:
        text = pathlib.Path(folder, f"{stem}.txt")
        captions = _lines(text.read_bytes(), str(text)) if text.is_file() else []
        yield Example("/".join([*parts, name]), captions, person or None, split)


def read_imagefolder(source: str, columns: Columns) -> Iterator[Example]:
  """Examples of metadata files; images are paths, and a subfolder may name the split."""
  _check_folder(source, "imagefolder")
  for file in _metadata_files(source):
    part = os.path.relpath(os.path.dirname(file), source)
    for example in _examples_of_rows(_table_rows(file), columns):
      if part == os.curdir:
        yield example
      else:
        path = f"{part.replace(os.sep, '/')}/{example.image}"
        split = example.split or next(filter(split_of, part.split(os.sep)), None)
        yield dataclasses.replace(example, image=path, split=split)


def read_parquet(source: str, columns: Columns) -> Iterator[Example]:
  """Examples of Parquet files; a file name such as train-00000-of-00002.parquet gives the split."""
  import pyarrow
  from pyarrow import parquet

  for file in _files(source, ".parquet"):
    _check_regular(file)
    try:
      with parquet.ParquetFile(file) as table:
        batches = table.iter_batches(batch_size=64)
        rows = ((f"{file}, row {n},", row) for n, row in enumerate(_rows_of(batches, file)))
        for example in _examples_of_rows(rows, columns):
          yield dataclasses.replace(example, split=example.split or _split_in_name(file))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
      raise UserError(f"{file} cannot be read as Parquet: {error}") from error


def read_webdataset(source: str, columns: Columns) -> Iterator[Example]:
  """Examples of tar shards; a shard name such as train-000.tar gives the split."""
  for file in _files(source, ".tar"):
    _check_regular(file)
    try:
      with tarfile.open(file) as shard:
        for key, parts in _grouped(shard):
          place = f"{file}, {key},"
          example = _webdataset_example(parts, columns, place)
          if example:
            yield dataclasses.replace(example, split=example.split or _split_in_name(file))
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
      raise UserError(f"{file} cannot be read as a tar archive: is it complete?") from error


READERS: dict[str, Callable[[str, Columns], Iterator[Example]]] = {
  "table": read_table,
  "folders": read_folders,
  "imagefolder": read_imagefolder,
  "parquet": read_parquet,
  "webdataset": read_webdataset,
}

_Row = tuple[str, Mapping[str, Any]]


def _table_rows(file: str) -> Iterator[_Row]:
  """(place, row) of each row of a table."""
  ending = os.path.splitext(file)[1].lower()
  if ending not in (".csv", ".tsv"):
    rows = [_json_row(entry, file) for entry in annotation_formats.read_entries(file)]
    # Columns are chosen once, so each row has all of them, as in a CSV file.
    empty = dict.fromkeys(name for _, row in rows for name in row)
    yield from ((place, {**empty, **row}) for place, row in rows)
    return
  _check_regular(file)
  text = _decoded(pathlib.Path(file).read_bytes(), file)
  # Spreadsheets separate by semicolons where the comma is the decimal sign.
  header = _LINE_END.split(text, maxsplit=1)[0]
  delimiter = "\t" if ending == ".tsv" else max(",;\t", key=header.count)
  reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  try:
    for row in reader:
      place = f"{file}, line {reader.line_num},"
      surplus = next(filter(str.strip, row.pop(None, ())), None)
      if surplus is not None:
        raise UserError(
          f"{place} has {annotation_formats.shown(surplus)} beyond the last column: put texts that"
          f' contain {delimiter!r} in double quotes, "like this"'
        )
      yield place, row
  except csv.Error as error:
    raise UserError(f"{file}, line {reader.line_num}: {error}") from error


def _json_row(entry: annotation_formats.Entry, file: str) -> _Row:
  place, content = f"{file}, {entry.place},", entry.content
  if isinstance(content, annotation_formats.RepeatedKey):
    raise UserError(f"{place} has the key {content.key!r} twice")
  content = content if isinstance(content, dict) else {}
  return place, {**content, "split": content.get("split") or entry.split}


def _examples_of_rows(rows: Iterable[_Row], columns: Columns) -> Iterator[Example]:
  chosen = None
  for place, row in rows:
    chosen = chosen or _choose_columns(columns, list(row), place)
    image = row.get(chosen.image)
    if isinstance(image, Mapping):  # as Hugging Face datasets store images
      image = image.get("bytes") or image.get("path")
    if not isinstance(image, str | bytes) or not image:
      raise UserError(f"{place} has no image in {chosen.image!r}")
    split = row.get(chosen.split)
    yield Example(
      image=image,
      captions=[text for name in chosen.captions for text in _texts(row.get(name), name, place)],
      person=_person(row.get(chosen.person), place),
      split=split if isinstance(split, str) and split.strip() else None,
    )


def _choose_columns(columns: Columns, names: Sequence[str], place: str) -> Columns:
  """The columns to read among those that a table has."""
  given = (columns.image, *columns.captions, columns.person, columns.split)
  for name in filter(None, given):
    if name not in names:
      raise UserError(f"{place} has no column {name!r}, only {', '.join(map(repr, names[:20]))}")

  by_lower_case = {name.lower(): name for name in reversed(names)}

  def usual(fields: Sequence[str]) -> str:
    return next((by_lower_case[field] for field in fields if field in by_lower_case), "")

  numbered = sorted(filter(_NUMBERED_CAPTION.fullmatch, names))
  captions = columns.captions or [usual(CAPTION_FIELDS)] * bool(usual(CAPTION_FIELDS)) or numbered
  image = columns.image or usual(PATH_FIELDS)
  for flag, value in (("--image_column NAME", image), ("--caption_columns NAME,...", captions)):
    if not value:
      raise UserError(
        f"{place} has the columns {', '.join(map(repr, names[:20]))}: choose with {flag}"
      )
  return Columns(
    image, captions, columns.person or usual(ID_FIELDS), columns.split or usual(("split",))
  )


def _texts(value: object, name: str, place: str) -> list[str]:
  values = value if isinstance(value, list) else [value]
  if not all(text is None or isinstance(text, str) for text in values):
    raise UserError(f"{place} has something other than text in {name!r}")
  return [text for text in values if text]


def _person(value: object, place: str) -> int | str | None:
  if value is None or value == "" or value != value:  # an empty cell; NaN in a table of floats
    return None
  if isinstance(value, float) and value.is_integer():
    return int(value)
  if isinstance(value, bool) or not isinstance(value, int | str):
    raise UserError(f"{place} has an id that is neither a whole number nor text")
  return value


def _rows_of(batches: Iterable[Any], file: str) -> Iterator[Mapping[str, Any]]:
  for batch in batches:
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
      try:
        columns[name] = column.to_pylist()
      except UnicodeDecodeError as error:
        raise UserError(
          f"{file}: the column {name!r} has text that is not UTF-8 ({error.reason}): save texts as"
          " UTF-8, and images as binary"
        ) from error
    yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _grouped(shard: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
  """(name without ending, {ending: content}) of each example of a tar shard."""
  key, parts = "", {}
  for member in shard:
    if not member.isfile():
      continue
    folder, name = os.path.split(member.name)
    stem, _, ending = name.partition(".")
    if parts and os.path.join(folder, stem) != key:
      yield key, parts
      parts = {}
    key = os.path.join(folder, stem)
    parts[f".{ending.lower()}"] = shard.extractfile(member).read()
  if parts:
    yield key, parts
  # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
  shard.fileobj.seek(shard.offset)
  if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
    raise tarfile.ReadError("damaged header")


def _webdataset_example(parts: Mapping[str, bytes], columns: Columns, place: str) -> Example | None:
  """The example of the files of one name, None if none of them is an image."""
  image = next((parts[ending] for ending in catalog.IMAGE_ENDINGS if ending in parts), None)
  if image is None:
    return None
  if not {".json", ".txt"} & parts.keys():
    return Example(image, (), None, None)
  row: dict[str, Any] = {}
  if ".json" in parts:
    try:
      row = json.loads(parts[".json"])
    except (ValueError, RecursionError) as error:
      raise UserError(f"{place} has a JSON file that cannot be read: {error}") from error
    if not isinstance(row, dict):
      raise UserError(f"{place} has a JSON file that is not an object")
  if ".txt" in parts:
    row = {**row, "caption": _lines(parts[".txt"], place)}
  row["\0image"] = image
  (example,) = _examples_of_rows([(place, row)], dataclasses.replace(columns, image="\0image"))
  return example


def _lines(raw: bytes, place: str) -> list[str]:
  return _LINE_END.split(_decoded(raw, place))


def _decoded(raw: bytes, place: str) -> str:
  try:
    return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{place} is not text ({error.reason}): save it as UTF-8") from error


def _check_regular(file: str) -> None:
  user_files.check_regular(pathlib.Path(file), "source")


def _check_folder(source: str, form: str) -> None:
  if not os.path.isdir(source):
    raise UserError(f"{source} is no folder: --form {form} takes a folder")


def _files(source: str, ending: str) -> list[str]:
  """The source itself if it is a file, else all files inside it with this ending."""
  if not os.path.isdir(source):
    return [source]
  return sorted(
    os.path.join(folder, name)
    for folder, names in folder_walk.walk(source, _stop_at)
    for name in names
    if name.lower().endswith(ending)
  )


def _stop_at(error: OSError) -> NoReturn:
  raise UserError(f"{error.filename}: {error.strerror}: make the folder readable, or move it away")


def _metadata_files(source: str) -> list[str]:
  _, subfolders, _ = next(os.walk(source, onerror=_stop_at))
  folders = [source, *(os.path.join(source, name) for name in sorted(subfolders))]
  files = (os.path.join(folder, name) for folder in folders for name in _METADATA)
  return [file for file in files if os.path.isfile(file)]


def _split_in_name(file: str) -> str | None:
  """ "train" for .../train-00000-of-00002.parquet and .../train/0.parquet."""
  stem = re.split(r"[-_.\d]", os.path.basename(file), maxsplit=1)[0]
  folder = os.path.basename(os.path.dirname(file))
  return next((name for name in (stem, folder) if split_of(name)), None)
