"""Encodes several captions in one sequence, so that little padding is computed.

Sequences have room for the longest caption, and most captions fill a third of it. Tokens after the
end token cannot change the feature (see `text_tower`), so each caption is cut there, and captions
are laid end to end in rows, where every token attends to its own caption alone.
All shapes are static. Each device sorts its captions by length, and the caption of each rank has a
fixed slot in a row, long enough for all batches of a run.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_MULTIPLE = 8  # of the length of a row, in tokens: rows of a TPU's tile
_LONGEST_ROW = 128  # in tokens, unless a caption is longer; a tile of attention kernels


class Slot(NamedTuple):
  """The place of one caption of a device's batch."""

  row: int
  start: int  # of its first token in the row
  length: int  # longest caption that fits, in tokens


class Packing(NamedTuple):
  """Slots of a device's captions, short captions first; hashable."""

  slots: tuple[Slot, ...]
  num_rows: int
  row_length: int  # T, in tokens

  @property
  def tokens_per_caption(self) -> float:
    """Tokens that are computed, empty ones included."""
    return self.num_rows * self.row_length / len(self.slots)


class Rows(NamedTuple):
  """Packed captions, as the text tower reads them. P rows hold up to Q captions each."""

  tokens_PxT: Int[Array, "P T"]
  position_PxT: Int[Array | np.ndarray, "P T"]  # of a token in its caption
  caption_PxT: Int[Array | np.ndarray, "P T"]  # number of a token's caption; -1: none
  end_PxQ: Int[Array, "P Q"]  # position of each caption's end token in its row


def choose(longest_R: Int[np.ndarray, " R"], context_length: int) -> Packing:
  """Chooses the slots that need the fewest tokens; long captions are placed first.

  Args:
    longest_R: tokens of the longest caption at each rank of a device's R captions, ascending.
    context_length: L, limit of every length.
  """
  limit_R = np.minimum(longest_R, context_length)
  up = lambda tokens: -(-int(tokens) // _MULTIPLE) * _MULTIPLE
  shortest, longest = up(limit_R[-1]), max(up(limit_R[-1]), _LONGEST_ROW)
  packings = [_pack(limit_R, length) for length in range(shortest, longest + 1, _MULTIPLE)]
  return min(packings, key=lambda packing: packing.tokens_per_caption)


def _pack(length_R, row_length):
  """First fit: every caption, the longest first, goes into the first row with enough room."""
  used, slots = [], []
  for length in reversed(length_R.tolist()):
    row = next((row for row, tokens in enumerate(used) if tokens + length <= row_length), len(used))
    if row == len(used):
      used.append(0)
    slots.append(Slot(row, used[row], length))
    used[row] += length
  return Packing(tuple(reversed(slots)), len(used), row_length)


def encode_packed(
  encode_rows: Callable[[Rows], Float[Array, "P Q D"]],
  tokens_NxL: Int[Array, "N L"],
  packing: Packing,
  shards: int,
) -> Float[Array, "N D"]:
  """Features of captions, equal to those of captions encoded one by one up to rounding.

  A caption that does not fit its slot gets a feature of NaN, which stops the run.

  Args:
    encode_rows: rows -> features of their captions.
    tokens_NxL: N captions, split over the devices; the highest id of each is its end token. N is a
      multiple of the slots on all devices: captions may stand in the batch several times.
    packing: from `choose`.
    shards: S, parts that the batch is split into over the devices.
  """
  num_captions, context_length = tokens_NxL.shape
  num_slots = len(packing.slots)
  repeats, remainder = divmod(num_captions, shards * num_slots)
  if remainder:
    raise ValueError(f"{num_captions} captions are no multiple of {num_slots} on {shards} shards")
  # Captions of one shard are sorted among themselves, so that none changes its device. Each slot
  # is used once for every repetition; copies of a caption are neighbours in the order.
  tokens_SxMxL = tokens_NxL.reshape(shards, -1, context_length)
  length_SxM = jnp.argmax(tokens_SxMxL, axis=-1) + 1
  order_SxM = jnp.argsort(length_SxM, axis=1)
  by_copy = lambda sorted_SxMxX: jnp.swapaxes(
    sorted_SxMxX.reshape(shards, num_slots, repeats, -1), 1, 2
  )
  length_SxCxR = by_copy(jnp.take_along_axis(length_SxM, order_SxM, axis=1))[..., 0]
  tokens_SxCxRxL = by_copy(jnp.take_along_axis(tokens_SxMxL, order_SxM[:, :, None], axis=1))

  layout = _layout(packing, context_length)
  merged = tokens_SxCxRxL.reshape(shards, repeats, -1)
  is_taken_PxT = layout.slot_PxT >= 0
  packed_SxCxPxT = jnp.where(is_taken_PxT[None, None], merged[:, :, layout.source_PxT], 0)
  start_1x1xR, limit_1x1xR = layout.start_R[None, None], layout.limit_R[None, None]
  end_SxCxR = start_1x1xR + jnp.minimum(length_SxCxR, limit_1x1xR) - 1
  flat = lambda array_SxCxPxX: array_SxCxPxX.reshape(-1, array_SxCxPxX.shape[-1])
  tiled = lambda array_PxT: np.tile(array_PxT, (shards * repeats, 1))
  features_PxQxD = encode_rows(
    Rows(
      tokens_PxT=flat(packed_SxCxPxT),
      position_PxT=tiled(layout.position_PxT),
      caption_PxT=tiled(layout.slot_PxT),
      end_PxQ=flat(end_SxCxR[:, :, layout.slots_PxQ]),
    )
  )

  features_SxCxWxD = features_PxQxD.reshape(shards, repeats, -1, features_PxQxD.shape[-1])
  fits_SxCxR = length_SxCxR <= limit_1x1xR
  features_SxCxRxD = jnp.where(
    fits_SxCxR[..., None], features_SxCxWxD[:, :, layout.place_R], jnp.nan
  )
  sorted_SxMxD = jnp.swapaxes(features_SxCxRxD, 1, 2).reshape(*order_SxM.shape, -1)
  rank_SxM = jnp.argsort(order_SxM, axis=1)
  return jnp.take_along_axis(sorted_SxMxD, rank_SxM[:, :, None], axis=1).reshape(num_captions, -1)


class _Layout(NamedTuple):
  """A packing as tables."""

  slot_PxT: np.ndarray  # of each token; -1: none
  position_PxT: np.ndarray  # of each token in its caption
  source_PxT: np.ndarray  # index of each token among the (R, L) tokens of the sorted captions
  slots_PxQ: np.ndarray  # slots of each row, the last one repeated
  start_R: np.ndarray
  limit_R: np.ndarray
  place_R: np.ndarray  # index of each slot in `slots_PxQ`


def _layout(packing: Packing, context_length: int) -> _Layout:
  shape = packing.num_rows, packing.row_length
  slot_PxT, position_PxT = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
  slots_of_row = [[] for _ in range(packing.num_rows)]
  for number, (row, start, length) in enumerate(packing.slots):
    slot_PxT[row, start : start + length] = number
    position_PxT[row, start : start + length] = np.arange(length)
    slots_of_row[row].append(number)
  most = max(map(len, slots_of_row))
  slots_PxQ = np.array([(slots + most * slots[-1:])[:most] for slots in slots_of_row])
  row_R, start_R, limit_R = np.array(packing.slots).T
  column_R = [slots_of_row[row].index(number) for number, row in enumerate(row_R)]
  return _Layout(
    slot_PxT=slot_PxT,
    position_PxT=position_PxT,
    source_PxT=np.maximum(slot_PxT, 0) * context_length + position_PxT,
    slots_PxQ=slots_PxQ,
    start_R=start_R,
    limit_R=limit_R,
    place_R=row_R * most + np.array(column_R),
  )
