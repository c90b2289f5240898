"""Combines CRC-32 values of parts into that of the whole.

A CRC-32 is the remainder of a division of polynomials over GF(2), apart from two complements. So
remainders of parts can be computed anywhere, shifted to their place in the whole and added up by
exclusive or. zlib's own `crc32_combine` does the same; Python does not offer it.
"""

import functools
import zlib

import numpy as np

_POLYNOMIAL = 0xEDB88320  # of zlib; in all numbers here the highest bit is the coefficient of x^0
_ONE = 1 << 31
_X_TO_8 = 1 << 23
_COMPLEMENT = 0xFFFFFFFF


def remainder(content: bytes | memoryview | np.ndarray) -> int:
  """The remainder of bytes; that of zeros is 0."""
  # zlib complements the number that it starts from, and its result.
  return zlib.crc32(content, _COMPLEMENT) ^ _COMPLEMENT


def shifted(value: int, num_bytes: int) -> int:
  """The remainder of bytes that are followed by `num_bytes` zeros."""
  exponent = 0
  while num_bytes >> exponent:
    if (num_bytes >> exponent) & 1:
      value = _product(value, _zero_bytes(exponent))
    exponent += 1
  return value


def append(crc: int, value: int, num_bytes: int) -> int:
  """The CRC-32 of some bytes with the CRC-32 `crc`, then `num_bytes` with the remainder `value`."""
  return shifted(crc ^ _COMPLEMENT, num_bytes) ^ value ^ _COMPLEMENT


@functools.cache
def _zero_bytes(exponent: int) -> int:
  """x to the power of 8 * 2**exponent, which 2**exponent bytes of zeros multiply a remainder by."""
  if exponent == 0:
    return _X_TO_8
  half = _zero_bytes(exponent - 1)
  return _product(half, half)


def _product(a: int, b: int) -> int:
  """The product of two remainders."""
  total, bit = 0, _ONE
  while bit:
    if a & bit:
      total ^= b
    bit >>= 1
    b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
  return total
