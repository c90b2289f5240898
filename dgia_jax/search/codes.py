"""Codes of 8 bits for the features of an index, small enough to be read by every search.

  INDEX/codes/codes.npy   (rows, D) int8: what searches read, a quarter of features.npy
  INDEX/codes/rows.npy    per row: scale, error and norm of its code, and the CRC-32 of its feature
  INDEX/codes/codes.json  center and spread of the features; checksums of each part; written last

A feature is taken apart as x = center + spread * scale * code + e, with one center and one spread
per dimension for the whole index and one scale per row. The norm of e is stored, rounded up, so
that a search knows how far a score from codes can be off. Center and spread take out what all
features have in common, which would otherwise use up most of the 8 bits.

An index without codes, or with codes for some of its parts only, is searched by its features.
Indexing adds the codes that are missing.

Opening maps the codes and starts to verify their checksums, which reads all of them; the first
search waits for the result.
"""

import dataclasses
import os
import pathlib
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Float, Int8

from dgia_jax import files as files_lib
from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError
from dgia_jax.search import derived_files, index_files
from dgia_jax.search.index_files import Part

# Fewer rows than this are searched by their features: docs/performance.md has the measurement.
MIN_ROWS = 2**15
FOLDER, CODES, ROWS, ABOUT = "codes", "codes.npy", "rows.npy", "codes.json"
VERSION = 2  # of new codes; codes of version 1 differ in their checksums and stay in use
_CACHED_ROWS = 256  # encoded at a time
_SAMPLE_ROWS = 2**14  # from which center and spread are computed
_SUMMED_BYTES = 4096  # of a block of `block_checksum`
_ROW = np.dtype([("scale", "<f4"), ("error", "<f4"), ("norm", "<f4"), ("crc32", "<u4")])


@dataclasses.dataclass(frozen=True)
class Codes:
  """The codes of an index, mapped from disk.

  Attributes:
    codes: (N, D) int8.
    center, spread: (D,) float32.
    scale: (N,), of each row's code.
    error: (N,), at least the norm of what the code leaves out of the feature.
    norm: (N,), at least the norm of scale * code.
    crc32: (N,), of the bytes of each feature.
    check: returns once the checksums of all codes are verified; raises UserError if one differs.
  """

  codes: Int8[np.ndarray, "N D"]
  center: Float[np.ndarray, " D"]
  spread: Float[np.ndarray, " D"]
  scale: Float[np.ndarray, " N"]
  error: Float[np.ndarray, " N"]
  norm: Float[np.ndarray, " N"]
  crc32: Any
  check: Callable[[], Any] = lambda: None


def update(folder: pathlib.Path | str, parts: Sequence[Part], width: int) -> None:
  """Makes the codes of all parts that have none, if the index is large enough to profit.

  Raises:
    UserError: features or existing codes are damaged.
    OSError: the codes cannot be written.
  """
  num_rows = parts[-1].stop_row if parts else 0
  if num_rows < MIN_ROWS:
    return
  folder = pathlib.Path(folder)
  about = _read_about(folder) or {"version": VERSION, "parts": []}
  missing = parts[len(about["parts"]) :]
  if not missing:
    return
  features = index_files.open_features(folder, parts, width, verify=False)
  if about["parts"]:
    _mapped(folder / FOLDER, missing[0].first_row, width)
  else:
    (folder / FOLDER).mkdir(exist_ok=True)
    sample = features[:: -(-num_rows // _SAMPLE_ROWS)]
    about |= {"center": sample.mean(axis=0, dtype=np.float64).astype(np.float32).tolist()}
    about |= {"spread": _spread(sample).tolist()}
  center, spread = (np.asarray(about[key], np.float32) for key in ("center", "spread"))
  checksum = _CHECKSUMS[about["version"]]

  def encode_part(part: Part) -> tuple[Part, np.ndarray, np.ndarray]:
    part_features = np.array(features[part.first_row : part.stop_row])
    index_files.check_part(folder, part, part_features)
    return part, *encode(part_features, center, spread)

  for part, codes, rows in images_lib.ordered_map(encode_part, missing, 0):
    for name, array in ((CODES, codes), (ROWS, rows)):
      index_files.append_rows(folder / FOLDER / name, part.first_row, array)
    about["parts"].append([part.crc32, checksum(codes), checksum(rows)])
  files_lib.write_json(folder / FOLDER / ABOUT, files_lib.sealed(about))


def _spread(sample: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " D"]:
  """Standard deviation per dimension; no dimension is taken to be nearly constant."""
  spread = sample.std(axis=0, dtype=np.float64)
  return np.maximum(spread, max(0.01 * spread.mean(), 1e-6)).astype(np.float32)


def encode(
  features: Float[np.ndarray, "n D"],
  center: Float[np.ndarray, " D"],
  spread: Float[np.ndarray, " D"],
) -> tuple[Int8[np.ndarray, "n D"], np.ndarray]:
  """Codes of features of norm 1, and what rows.npy holds of each."""
  features = np.ascontiguousarray(features, "<f4")
  codes, rows = np.empty(features.shape, np.int8), np.empty(len(features), _ROW)
  for start in range(0, len(features), _CACHED_ROWS):
    part = slice(start, start + _CACHED_ROWS)
    residual = (features[part] - center) / spread
    scale = np.abs(residual).max(axis=1) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    coded = np.rint(residual / scale[:, None]).clip(-127, 127)
    codes[part] = coded
    coded *= scale[:, None]
    norm = _norms(coded)
    coded *= spread
    coded += center
    # The second term is for the rounding of `coded` and of this difference, about 3e-7 in norm.
    error = _norms(features[part] - coded) + np.float32(2**-20)
    rows["scale"][part], rows["error"][part], rows["norm"][part] = scale, error, norm
  rows["crc32"] = [zlib.crc32(feature) for feature in features]
  return codes, rows


def _norms(vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
  """Norms of rows, made larger than their rounding error."""
  return np.sqrt(np.einsum("nd,nd->n", vectors, vectors)) * np.float32(1.0001)


def block_checksum(array: np.ndarray) -> int:
  """CRC-32 of the sums of blocks of `_SUMMED_BYTES` bytes: as fast as these can be read."""
  content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  whole = len(content) // _SUMMED_BYTES * _SUMMED_BYTES
  words = content[:whole].view("<u8").reshape(-1, _SUMMED_BYTES // 8)
  return zlib.crc32(content[whole:], zlib.crc32(words.sum(axis=1, dtype="<u8")))


_CHECKSUMS = {1: zlib.crc32, VERSION: block_checksum}  # by version of the codes


def open_codes(folder: pathlib.Path | str, parts: Sequence[Part], width: int) -> Codes | None:
  """Maps the codes of an index and starts to verify them; None unless all parts have codes.

  Raises:
    UserError: the codes are damaged, as far as that is seen without reading them.
  """
  num_rows = parts[-1].stop_row if parts else 0
  about = _read_about(folder) if num_rows >= MIN_ROWS else None
  if about is None or len(about["parts"]) < len(parts):
    return None
  folder = pathlib.Path(folder) / FOLDER
  center, spread = (np.asarray(about[key], np.float32) for key in ("center", "spread"))
  if not center.shape == spread.shape == (width,):
    raise derived_files.damaged(folder / ABOUT, f"center {center.shape}, spread {spread.shape}")
  codes, rows = _mapped(folder, num_rows, width)
  checksum = _CHECKSUMS[about["version"]]

  def is_damaged(part_and_checksums: tuple[Part, Sequence[int]]) -> bool:
    part, checksums = part_and_checksums
    rows_of_part = slice(part.first_row, part.stop_row)
    return [part.crc32, checksum(codes[rows_of_part]), checksum(rows[rows_of_part])] != checksums

  def verify() -> None:
    pairs = list(zip(parts, about["parts"], strict=False))
    for part, damaged in zip(parts, images_lib.ordered_map(is_damaged, pairs, 0), strict=True):
      if damaged:
        raise derived_files.damaged(
          folder, f"rows {part.first_row:,} to {part.stop_row - 1:,}: checksum differs"
        )

  fields = {name: rows[name][:num_rows] for name in _ROW.names}
  fields["scale"] = np.ascontiguousarray(fields["scale"])  # the devices need it in one piece
  return Codes(codes[:num_rows], center, spread, **fields, check=_started(verify))


def _started(function: Callable[[], None]) -> Callable[[], None]:
  """Starts a function in a thread; returns what waits for its outcome.

  No exit waits for the thread, only for the parts that its own threads are just verifying.
  """
  future = futures.Future()

  def run() -> None:
    try:
      future.set_result(function())
    except BaseException as error:  # is raised where the outcome is asked for
      future.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return future.result


class VerifiedFeatures:
  """Reads single rows of features.npy, each of which has a checksum among the codes.

  They are read rather than mapped: a mapped page stays in the memory of the process.
  """

  def __init__(self, folder: pathlib.Path | str, features: np.memmap, codes: Codes):
    """Opens the file that `features` maps."""
    self._folder, self._crc32, self._check = folder, codes.crc32, codes.check
    self._width, self._offset = features.shape[1], features.offset
    self._file = (pathlib.Path(folder) / index_files.FEATURES).open("rb", buffering=0)

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __call__(self, rows: Sequence[int] | np.ndarray) -> Float[np.ndarray, "n D"]:
    """The features of some rows.

    Raises:
      UserError: one of them, or the codes, are damaged.
    """
    self._check()  # the checksums of single features are in rows.npy
    features = np.empty((len(rows), self._width), "<f4")
    descriptor, row_bytes = self._file.fileno(), 4 * self._width
    for feature, row in zip(features, rows, strict=True):
      try:
        os.preadv(descriptor, [feature], self._offset + int(row) * row_bytes)
      except OSError as error:
        path = pathlib.Path(self._folder) / index_files.FEATURES
        raise UserError(f"--index: {path} cannot be read ({error})") from error
      if zlib.crc32(feature) != self._crc32[row]:
        raise index_files.damaged_features(self._folder, f"row {row:,}")
    return features


def _read_about(folder: pathlib.Path | str) -> dict[str, Any] | None:
  """The content of codes.json; None if it is missing or of an unknown version."""
  path = pathlib.Path(folder) / FOLDER / ABOUT
  return derived_files.read_about(path, _CHECKSUMS, ("parts", "center", "spread"))


def _mapped(folder: pathlib.Path, num_rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """The codes, and what rows.npy holds of each row; there are `num_rows` at least."""
  codes = derived_files.mapped(folder / CODES, np.dtype(np.int8))
  rows = derived_files.mapped(folder / ROWS, _ROW)
  if codes.shape[1:] != (width,) or rows.ndim != 1 or min(len(codes), len(rows)) < num_rows:
    raise derived_files.damaged(folder, f"codes {codes.shape}, rows {rows.shape}")
  return codes, rows
