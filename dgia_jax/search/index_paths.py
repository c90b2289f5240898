"""The paths of the images of an index, in a form of which a search reads only what it shows.

  INDEX/paths/text.npy    the paths of all rows as one text in UTF-8
  INDEX/paths/stops.npy   per row: where its path ends in this text
  INDEX/paths/paths.json  checksums of each part; written last

Updates read files/*.json, which hold the paths, too. So does the opening of an index that has no
paths in this form, or for some of its parts only; indexing adds those that are missing.
"""

import bisect
import fnmatch
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from dgia_jax import files as files_lib
from dgia_jax.search import derived_files, index_files
from dgia_jax.search.index_files import Part

FOLDER, TEXT, STOPS, ABOUT = "paths", "text.npy", "stops.npy", "paths.json"
VERSION = 1
_STOP = np.dtype("<u8")
# Names of files may hold undecodable bytes, which Python reads as surrogates.
_ENCODING = ("utf-8", "surrogatepass")


def update(folder: pathlib.Path | str, parts: Sequence[Part]) -> None:
  """Writes the paths of all parts that have none in this form.

  Raises:
    UserError: what is there is damaged.
    OSError: the paths cannot be written.
  """
  folder = pathlib.Path(folder)
  about = _read_about(folder) or {"version": VERSION, "parts": []}
  missing = parts[len(about["parts"]) :]
  if not missing:
    return
  (folder / FOLDER).mkdir(exist_ok=True)
  first_byte = Paths(folder, parts[: len(about["parts"])]).num_bytes
  for part in missing:
    paths = [path.encode(*_ENCODING) for path in index_files.read_paths(folder, part)]
    text = np.frombuffer(b"".join(paths), np.uint8)
    stops = (first_byte + np.cumsum([len(path) for path in paths])).astype(_STOP)
    crc32s = [
      index_files.append_rows(folder / FOLDER / TEXT, first_byte, text),
      index_files.append_rows(folder / FOLDER / STOPS, part.first_row, stops),
    ]
    about["parts"].append([part.crc32, *crc32s])
    first_byte += len(text)
  files_lib.write_json(folder / FOLDER / ABOUT, files_lib.sealed(about))


class Paths(Sequence[str]):
  """Path of every row, relative to the folder of images; each part is verified when it is read."""

  def __init__(self, folder: pathlib.Path | str, parts: Sequence[Part]):
    """Maps the paths of an index, or reads those that are in files/*.json only.

    Raises:
      UserError: a file is missing or damaged.
    """
    self._folder, self._parts = pathlib.Path(folder), parts
    self._first_rows = [part.first_row for part in parts]
    self._verified: set[int] = set()
    about = _read_about(self._folder) if parts else None
    self._checksums = about["parts"][: len(parts)] if about else []
    # Now, as a compaction may remove them; what is mapped stays.
    self._listed = [index_files.read_paths(folder, part) for part in parts[len(self._checksums) :]]
    if self._checksums:
      last = parts[len(self._checksums) - 1]
      self._text, self._stops = _mapped(self._folder, last.stop_row)

  def __len__(self) -> int:
    return self._parts[-1].stop_row if self._parts else 0

  def __getitem__(self, row: Any) -> str:
    row = range(len(self))[row]
    number = bisect.bisect_right(self._first_rows, row) - 1
    if number >= len(self._checksums):
      return self._of_part(number)[row - self._first_rows[number]]
    self._verify(number)
    start = int(self._stops[row - 1]) if row else 0
    return self._inside(bytes(self._text[start : int(self._stops[row])]))

  def __iter__(self) -> Iterator[str]:
    for number in range(len(self._parts)):
      yield from self._of_part(number)

  @property
  def num_bytes(self) -> int:
    """The length of the text, of which the last part is verified."""
    if not self._checksums:
      return 0
    self._verify(len(self._checksums) - 1)
    return int(self._bounds(len(self._checksums) - 1)[1][-1])

  def matching(self, pattern: str) -> Bool[np.ndarray, " N"]:
    """The rows whose paths match a glob, to which "/" and "*/" may begin a path, too."""
    matches = re.compile(fnmatch.translate(_composed(pattern))).match
    slash = "/" if pattern.lstrip("*").startswith("/") else ""
    matching_N = np.zeros(len(self), bool)
    for number, part in enumerate(self._parts):
      matching_N[part.first_row : part.stop_row] = [
        bool(matches(path) or slash and matches(f"{slash}{path}"))
        for path in map(_composed, self._of_part(number))
      ]
    return matching_N

  def _of_part(self, number: int) -> list[str]:
    """The paths of a part."""
    if number >= len(self._checksums):
      return self._listed[number - len(self._checksums)]
    self._verify(number)
    start, stops = self._bounds(number)
    text, stops = bytes(self._text[start : stops[-1]]), (stops - np.uint64(start)).tolist()
    starts = [0, *stops[:-1]]
    return [self._inside(text[a:b]) for a, b in zip(starts, stops, strict=True)]

  def _bounds(self, number: int) -> tuple[int, np.ndarray]:
    """Where the text of a part begins, and where its paths end."""
    part = self._parts[number]
    start = int(self._stops[part.first_row - 1]) if part.first_row else 0
    return start, self._stops[part.first_row : part.stop_row]

  def _verify(self, number: int) -> None:
    """Raises UserError unless the paths of a part are those that were written."""
    if number in self._verified:
      return
    start, stops = self._bounds(number)
    text, part = self._text[start : int(stops[-1])], self._parts[number]
    if [part.crc32, zlib.crc32(text), zlib.crc32(stops)] != self._checksums[number]:
      raise derived_files.damaged(
        self._folder / FOLDER, f"rows {part.first_row:,} to {part.stop_row - 1:,}: checksum differs"
      )
    self._verified.add(number)

  def _inside(self, path: bytes) -> str:
    """A path as text, if it leads into the folder of images."""
    try:
      text = path.decode(*_ENCODING)
    except UnicodeDecodeError as error:
      raise derived_files.damaged(self._folder / FOLDER, str(error)) from error
    if not index_files.is_inside(text):
      raise derived_files.damaged(self._folder / FOLDER, f"{text!r} is elsewhere")
    return text


def _composed(text: str) -> str:
  """The text with accents as parts of their letters: some systems store them apart."""
  return text if text.isascii() else unicodedata.normalize("NFC", text)


def _read_about(folder: pathlib.Path) -> dict[str, Any] | None:
  """The content of paths.json; None if it is missing or of another version."""
  return derived_files.read_about(folder / FOLDER / ABOUT, (VERSION,), ("parts",))


def _mapped(folder: pathlib.Path, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
  """The text, and where the path of each row ends in it; there are `num_rows` at least."""
  text = derived_files.mapped(folder / FOLDER / TEXT, np.dtype(np.uint8))
  stops = derived_files.mapped(folder / FOLDER / STOPS, _STOP)
  if text.ndim != 1 or stops.ndim != 1 or len(stops) < num_rows:
    raise derived_files.damaged(folder / FOLDER, f"text {text.shape}, stops {stops.shape}")
  return text, stops
