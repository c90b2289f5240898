"""Encodes the captions of a batch in groups of similar length, so that little padding is computed.

Sequences have room for the longest caption, and most captions fill a third of it. Tokens after the
end token cannot change the feature (see `text_tower`), so a caption may be cut there. Each device
sorts its captions by length and encodes them group by group, each group cut to its own length. All
shapes are static: sizes and lengths of the groups are chosen once for all batches of a run.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_MULTIPLE = 8  # of lengths, in tokens: rows of a TPU's tile, and fewer different shapes


class CaptionGroup(NamedTuple):
  """Captions of a device's batch that are cut to one length."""

  rows: int  # captions per device
  length: int  # tokens


def choose(
  longest_R: Int[np.ndarray, " R"], num_groups: int, context_length: int
) -> tuple[CaptionGroup, ...]:
  """Chooses the groups with the fewest tokens.

  Args:
    longest_R: tokens of the longest caption at each rank of a device's R captions, ascending.
    num_groups: largest number of groups.
    context_length: L, limit of every length.

  Returns:
    The groups, short captions first.
  """
  length_R = np.minimum(-(-longest_R // _MULTIPLE) * _MULTIPLE, context_length)
  num_rows = len(length_R)
  # tokens[end]: fewest tokens with which the groups so far cover the first `end` ranks.
  tokens = np.array([0.0] + [np.inf] * num_rows)
  starts_of_groups = []
  for _ in range(min(num_groups, num_rows)):
    with_one_more, starts = tokens.copy(), np.arange(num_rows + 1)
    for end in range(1, num_rows + 1):
      cost = tokens[:end] + (end - np.arange(end)) * length_R[end - 1]
      start = int(np.argmin(cost))
      if cost[start] < tokens[end]:
        with_one_more[end], starts[end] = cost[start], start
    tokens = with_one_more
    starts_of_groups.append(starts)
  groups, end = [], num_rows
  for starts in reversed(starts_of_groups):
    if starts[end] < end:
      groups.append(CaptionGroup(end - int(starts[end]), int(length_R[end - 1])))
      end = int(starts[end])
  return tuple(reversed(groups))


def encode_in_groups(
  encode: Callable[[Array], Float[Array, "_ D"]],
  tokens_NxL: Int[Array, "N L"],
  groups: Sequence[CaptionGroup],
  shards: int,
) -> Float[Array, "N D"]:
  """Features of captions, equal to `encode(tokens_NxL)` up to rounding.

  A caption that does not fit its group gets a feature of NaN, which stops the run.

  Args:
    encode: tokens -> features, for any length.
    tokens_NxL: N captions, split over the devices; the highest id of each is its end token. N is a
      multiple of the groups' rows on all devices: captions may stand in the batch several times.
    groups: from `choose`.
    shards: S, parts that the batch is split into over the devices.
  """
  num_captions, length = tokens_NxL.shape
  repeats, remainder = divmod(num_captions, shards * sum(group.rows for group in groups))
  if remainder:
    raise ValueError(f"{num_captions} captions are no multiple of {groups} on {shards} shards")
  # Rows of one shard are sorted among themselves, so that none changes its device.
  tokens_SxRxL = tokens_NxL.reshape(shards, -1, length)
  length_SxR = jnp.argmax(tokens_SxRxL, axis=-1) + 1
  order_SxR = jnp.argsort(length_SxR, axis=1)
  sorted_SxRxL = jnp.take_along_axis(tokens_SxRxL, order_SxR[:, :, None], axis=1)
  features, limits, start = [], [], 0
  for group in groups:
    rows = repeats * group.rows
    cut = sorted_SxRxL[:, start : start + rows, : group.length].reshape(-1, group.length)
    features.append(encode(cut).reshape(shards, rows, -1))
    limits += [group.length] * rows
    start += rows
  rank_SxR = jnp.argsort(order_SxR, axis=1)
  features_SxRxD = jnp.take_along_axis(
    jnp.concatenate(features, axis=1), rank_SxR[:, :, None], axis=1
  )
  fits_SxR = length_SxR <= jnp.asarray(limits)[rank_SxR]
  return jnp.where(fits_SxR[:, :, None], features_SxRxD, jnp.nan).reshape(num_captions, -1)
