"""Batches of captions that are only encoded: sorted by length and cut to a few static lengths.

Tokens after the end token cannot change a caption's feature (see `text_tower`), and most captions
fill a third of the context. Slots of packed captions (`caption_packing`) fit one set of captions,
so every split and every query would be compiled; these few lengths serve all.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Lengths of batches are multiples of this many tokens. Every length is compiled once, so few are
# better than the last tenth of the arithmetic.
MULTIPLE = 32


class CaptionBatch(NamedTuple):
  """Captions that are encoded together."""

  numbers_b: Int[np.ndarray, " b"]  # of the captions among all, b <= B
  tokens_BxT: Int[np.ndarray, "B T"]  # those captions, the last one repeated


def batches(
  tokens_NxL: Int[np.ndarray, "N L"], batch_size: int, *, by_length: bool = True
) -> Iterator[CaptionBatch]:
  """All captions once, in batches of B rows.

  Args:
    tokens_NxL: encoded captions.
    batch_size: B.
    by_length: the longest first, each batch cut behind its last end token, which has the highest
      id of its caption. Otherwise all captions in order and uncut.
  """
  num_captions, context_length = tokens_NxL.shape
  if by_length:
    length_N = np.argmax(tokens_NxL, axis=1) + 1
  else:
    length_N = np.full(num_captions, context_length)
  order_N = np.argsort(-length_N, kind="stable")
  for start in range(0, num_captions, batch_size):
    numbers_b = order_N[start : start + batch_size]
    length = -(-int(length_N[numbers_b[0]]) // MULTIPLE) * MULTIPLE
    padding = [(0, batch_size - len(numbers_b)), (0, 0)]
    yield CaptionBatch(numbers_b, np.pad(tokens_NxL[numbers_b, :length], padding, mode="edge"))
