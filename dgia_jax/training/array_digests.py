"""Digests of arrays: SHA-256 to compare runs, the much faster CRC-32 to notice damaged checkpoints.

Both are those of the bytes of the whole array, so the mesh that an array is split over makes no
difference. Yet no process ever holds the whole array, because a memory bank may be larger than the
memory of a host: arrays are read in blocks of rows. Each process computes the CRC-32 of its own
part, and only these numbers are exchanged. SHA-256 needs all bytes in their order, so there the
processes give each other one block after the other.
"""

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dgia_jax import distributed
from dgia_jax.training import crc32

BLOCK_BYTES = 2**24  # of an array that are on the host at a time, unless a single row is larger


def digest_of_arrays(
  arrays: Mapping[str, jax.Array | np.ndarray | np.generic],
  num_rows: Mapping[str, int] | None = None,
) -> str:
  """SHA-256 over names, types, shapes and bytes, sorted by name, as 64 hexadecimal digits.

  If an array is split over several processes, every process must call this.

  Args:
    arrays: by name.
    num_rows: number of rows that count, by name, of arrays whose other rows are padding.
  """
  total = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    parts = _parts(array, (num_rows or {}).get(name))
    total.update(f"{name} ".encode() + parts.header)
    for start, stop in _row_blocks(parts):
      content = _content(parts, start, stop)
      total.update(content if parts.are_all else distributed.summed(content))
  return total.hexdigest()


def checksums(arrays: Mapping[str, jax.Array | np.ndarray | np.generic]) -> dict[str, str]:
  """CRC-32 over type, shape and bytes of each array, as 8 hexadecimal digits.

  If an array is split over several processes, every process must call this.
  """
  parts = {name: _parts(array) for name, array in sorted(arrays.items())}
  remainders = {name: _remainder(part) for name, part in parts.items()}
  split = [name for name, part in parts.items() if not part.are_all]
  if split:
    own = np.array([remainders[name] for name in split], np.uint32)
    whole = np.bitwise_xor.reduce(distributed.from_every_process(own), axis=0)
    remainders |= dict(zip(split, whole.tolist(), strict=True))
  return {
    name: f"{crc32.append(zlib.crc32(part.header), remainders[name], _num_bytes(part)):08x}"
    for name, part in parts.items()
  }


class _Parts(NamedTuple):
  """What this process holds of an array."""

  header: bytes  # type and shape, as they enter a digest
  shape: tuple[int, ...]  # a scalar counts as one row
  dtype: np.dtype
  shards: Sequence[tuple[tuple[slice, ...], Any]]  # place in the array, and the values there
  are_all: bool  # False if other processes hold the other elements; no two hold the same


def _parts(array: jax.Array | np.ndarray | np.generic, num_rows: int | None = None) -> _Parts:
  """The parts of an array of which only `num_rows` rows count; None for all."""
  shape, dtype = tuple(array.shape), np.dtype(array.dtype)
  if num_rows is not None:
    shape = (min(num_rows, shape[0]), *shape[1:])
  header = f"{dtype} {shape}".encode()
  everywhere = tuple(slice(None) for _ in shape)
  if not isinstance(array, jax.Array):
    shards, are_all = [(everywhere, array)], True
  elif array.is_fully_replicated:
    shards, are_all = [(everywhere, array.addressable_data(0))], True
  else:
    own = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    shards, are_all = [(shard.index, shard.data) for shard in own], array.is_fully_addressable
  if not shape:
    shape, shards = (1,), [((slice(None),), np.asarray(shards[0][1]).reshape(1))]
  return _Parts(header, shape, dtype, shards, are_all)


def _num_bytes(parts: _Parts, first_row: int = 0) -> int:
  """Bytes of the array's rows from `first_row` on."""
  return (parts.shape[0] - first_row) * math.prod(parts.shape[1:]) * parts.dtype.itemsize


def _row_blocks(parts: _Parts) -> Iterator[tuple[int, int]]:
  """First row and end of the blocks in which an array is read, in order."""
  row_bytes = math.prod(parts.shape[1:]) * parts.dtype.itemsize
  size = max(BLOCK_BYTES // max(row_bytes, 1), 1)
  for start in range(0, parts.shape[0], size):
    yield start, min(start + size, parts.shape[0])


def _remainder(parts: _Parts) -> int:
  """The remainder, see `crc32`, of the array with zeros in place of what other processes hold."""
  total = 0
  for start, stop in _row_blocks(parts):
    if any(_overlap(index[0], start, stop) for index, _ in parts.shards):
      value = crc32.remainder(_content(parts, start, stop))
      total ^= crc32.shifted(value, _num_bytes(parts, first_row=stop))
  return total


def _content(parts: _Parts, start: int, stop: int) -> np.ndarray:
  """The bytes of some rows, with zeros in place of what other processes hold."""
  block = None
  for (rows, *columns), values in parts.shards:
    if not (overlap := _overlap(rows, start, stop)):
      continue
    first, end = overlap
    shift = rows.start or 0
    values = _rows(values, first - shift, end - shift)
    if values.shape == (stop - start, *parts.shape[1:]):
      block = values
      break
    if block is None:
      block = np.zeros((stop - start, *parts.shape[1:]), parts.dtype)
    block[(slice(first - start, end - start), *columns)] = values
  if block is None:
    block = np.zeros((stop - start, *parts.shape[1:]), parts.dtype)
  return np.ascontiguousarray(block).reshape(-1).view(np.uint8)


def _overlap(rows: slice, start: int, stop: int) -> tuple[int, int] | None:
  """The part of the rows from `start` to `stop` that a shard has, if any."""
  first = max(rows.start or 0, start)
  end = stop if rows.stop is None else min(rows.stop, stop)
  return (first, end) if first < end else None


def _rows(values: jax.Array | np.ndarray | np.generic, start: int, stop: int) -> np.ndarray:
  """Some rows of an array that is on one device or on the host."""
  if isinstance(values, jax.Array) and stop - start < values.shape[0]:
    values = jax.lax.dynamic_slice_in_dim(values, start, stop - start)  # before it is copied
    return np.asarray(values)
  return np.asarray(values)[start:stop]
