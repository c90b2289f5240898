"""Digests of arrays: SHA-256 to compare runs, the much faster CRC-32 to notice damaged checkpoints.

Both see the bytes of the whole array, so the mesh that an array is split over makes no difference.
"""

import hashlib
import zlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils


def digest_of_arrays(arrays: Mapping[str, jax.Array | np.ndarray]) -> str:
  """SHA-256 over names, types, shapes and bytes, sorted by name, as 64 hexadecimal digits.

  Arrays that are split over several processes are gathered, so every process must call this.
  """
  total = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    host_array = on_host(array)
    total.update(f"{name} {host_array.dtype} {host_array.shape}".encode())
    total.update(_bytes(host_array))
  return total.hexdigest()


def checksums(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, str]:
  """CRC-32 over type, shape and bytes of each array, as 8 hexadecimal digits.

  Arrays that are split over several processes are gathered, so every process must call this.
  """
  sums = {}
  for name, array in sorted(arrays.items()):
    host_array = on_host(array)
    start = zlib.crc32(f"{host_array.dtype} {host_array.shape}".encode())
    sums[name] = f"{zlib.crc32(_bytes(host_array), start):08x}"
  return sums


def on_host(array: jax.Array | np.ndarray) -> np.ndarray:
  """The whole array, also where this process holds only a part of it."""
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    if array.is_fully_replicated:
      return np.asarray(array.addressable_data(0))
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(jax.device_get(array))


def _bytes(array: np.ndarray) -> memoryview:
  """The content in row-major order, without a copy if it is stored so already."""
  return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
