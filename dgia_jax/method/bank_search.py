"""The exact search of the memory bank (section 3.3): the most similar rows of every query.

A search shows every query to every shard; each shard scans its rows in blocks and sends each
query's best scores and row numbers to the one device that merges them for that query. So the work
and the traffic of a device fall with the number of devices, and no array as large as queries x rows
is ever created. Rows are stored with their inverse norms, so the scores of a block are one matrix
product; a row that was never written has inverse norm 0 and cannot be chosen.

N counts padded bank rows here, n the rows of one shard, b the queries that one device merges.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dgia_jax.method.losses import normalize
from dgia_jax.method.memory_bank import Bank, pad_rows, shard_index
from dgia_jax.sharding import BANK_AXES

# Scores computed at a time on one device, B x R, by platform: what fits into the cache of a CPU
# core (a block eight times larger takes 1.6 times as long), and 128 MB on an accelerator, which
# prefers few and large steps.
BLOCK_SCORES = {"cpu": 2**17}
BLOCK_SCORES_ELSEWHERE = 2**25
SEGMENT = 128  # columns of a segment, of which `_top` first looks only at the best
ANCHORS = ("image", "text", "both")


def search(
  bank: Bank,
  queries: tuple,
  count: int,
  *,
  mesh: Mesh,
  anchor: str = "image",
  block_rows: int = 0,
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
  """Exact `count` most similar bank rows of every query, best first, ties to the lowest row.

  Args:
    bank: rows laid out over the whole mesh.
    queries: (image features (B, D), text features (B, D)), unnormalised.
    count: candidates per query.
    mesh: the mesh that holds the bank.
    anchor: which features are compared: "image" (the paper), "text", or "both", the mean of the
      two cosines (Table 6).
    block_rows: rows of a shard scored at a time; 0 chooses by `block_rows_for`.

  Returns:
    As `nearest`.

  Raises:
    ValueError: for an unknown anchor.
  """
  if anchor not in ANCHORS:
    raise ValueError(f"anchor must be one of {ANCHORS}, not {anchor!r}")
  modalities = [
    (queries[0], bank.image, bank.image_inverse_norm),
    (queries[1], bank.text, bank.text_inverse_norm),
  ]
  modalities = {"image": modalities[:1], "text": modalities[1:], "both": modalities}[anchor]
  queries = tuple(query for query, _, _ in modalities)
  rows = tuple((features, norm) for _, features, norm in modalities)
  return nearest(queries, rows, count, mesh=mesh, block_rows=block_rows)


def nearest(
  queries: tuple, rows: tuple, count: int, *, mesh: Mesh, block_rows: int = 0
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
  """Exact `count` most similar rows of every query, best first, ties to the lowest row.

  Args:
    queries: arrays (B, D), unnormalised, one per compared modality; scores are the mean of the
      modalities' cosines.
    rows: (features (N, D), inverse norms (N,)), one pair per modality, laid out over the whole
      mesh. A row with inverse norm 0 is never returned.
    count: candidates per query.
    mesh: the mesh that holds the rows.
    block_rows: rows of a shard scored at a time; 0 chooses by `block_rows_for`.

  Returns:
    Cosines (-inf where the bank has fewer rows) and row numbers; queries are split over all
    devices, where B divides.
  """
  size, platform = queries[0].shape[0], mesh.devices.flat[0].platform
  block_rows = block_rows or block_rows_for(size, platform)
  queries = tuple(pad_rows(normalize(query), mesh.size) for query in queries)

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P(BANK_AXES)),
    out_specs=P(BANK_AXES),
    check_vma=False,
  )
  def search_shards(queries, shards):
    first_row = shard_index(mesh) * shards[0][1].shape[0]
    scores_BxC, rows_BxC = _scan_shard(queries, shards, count, first_row, block_rows)
    # Shards arrive in row order, so the stable merge keeps ties at the lowest row.
    return _merge(_to_mergers(scores_BxC), _to_mergers(rows_BxC), count)

  return jax.tree.map(lambda padded: padded[:size], search_shards(queries, rows))


def _to_mergers(candidates_BxC: Array) -> Array:
  """Sends each query's candidates to the device that merges it: (B, C) -> (b, S C), by shard."""
  exchange = functools.partial(jax.lax.all_to_all, axis_name=BANK_AXES, tiled=True)
  return exchange(candidates_BxC, split_axis=0, concat_axis=1)


def _scan_shard(
  queries: tuple, shards: tuple, count: int, first_row: Any, block_rows: int
) -> tuple[Array, Array]:
  """Exact top `count` of one shard, block by block.

  Args:
    queries: normalised queries (B, D), one array per compared modality.
    shards: (features (n, D), inverse norms (n,)), one pair per compared modality.
    count: candidates to return.
    first_row: global number of this shard's first row.
    block_rows: rows scored at a time.

  Returns:
    Scores (B, count) in descending order, -inf where no row exists, and their rows (B, count).
  """
  size, (num_rows,) = queries[0].shape[0], shards[0][1].shape
  num_blocks, block_rows = blocks(num_rows, block_rows)

  def visit(best, block):
    start, score_BxR = score_block(queries, shards, block, block_rows)
    score_BxC, column_BxC = _top(score_BxR, min(count, block_rows))
    row_BxC = (first_row + start + column_BxC).astype(jnp.int32)
    # Earlier blocks have lower row numbers and come first: ties go to the lowest row.
    merged = [
      jnp.concatenate(pair, axis=1) for pair in zip(best, (score_BxC, row_BxC), strict=True)
    ]
    return _merge(*merged, count), None

  nothing = (jnp.full((size, count), -jnp.inf), jnp.full((size, count), -1, jnp.int32))
  best, _ = jax.lax.scan(visit, nothing, jnp.arange(num_blocks))
  return best


def score_block(
  queries: tuple, shards: tuple, block: Any, block_rows: int
) -> tuple[Any, Float[Array, "B R"]]:
  """The first row of one block and its scores, -inf where a row was never written.

  The last block is moved back to end with the shard; rows that it repeats score -inf as well.

  Args:
    queries, shards: as `_scan_shard`.
    block: number of the block.
    block_rows: rows of a block.
  """
  (num_rows,) = shards[0][1].shape
  start = jnp.minimum(block * block_rows, num_rows - block_rows)
  score_BxR, seen_R = 0.0, True
  for query_BxD, (features_nxD, norm_n) in zip(queries, shards, strict=True):
    features_RxD = jax.lax.dynamic_slice_in_dim(features_nxD, start, block_rows)
    norm_R = jax.lax.dynamic_slice_in_dim(norm_n, start, block_rows)
    dot_BxR = jnp.dot(query_BxD, features_RxD.T, precision=jax.lax.Precision.HIGHEST)
    score_BxR += dot_BxR * norm_R[None, :] / len(queries)
    seen_R &= norm_R > 0
  usable_R = seen_R & (start + jnp.arange(block_rows) >= block * block_rows)
  return start, jnp.where(usable_R[None, :], score_BxR, -jnp.inf)


def blocks(num_rows: int, block_rows: int) -> tuple[int, int]:
  """The number of blocks of a shard and their rows; of equal size, so that few rows come twice."""
  num_blocks = -(-num_rows // block_rows)
  step = math.gcd(block_rows, SEGMENT)
  return num_blocks, min(-(-num_rows // (num_blocks * step)) * step, num_rows)


def block_rows_for(num_queries: int, platform: str) -> int:
  """Rows of a shard to score at a time: as many as `BLOCK_SCORES` allows, a multiple of 128."""
  scores = BLOCK_SCORES.get(platform, BLOCK_SCORES_ELSEWHERE)
  return max(scores // num_queries // SEGMENT, 1) * SEGMENT


def _top(scores_BxR: Float[Array, "B R"], count: int) -> tuple[Array, Array]:
  """The `count` best columns of every row, best first, ties to the lowest column.

  Looks at the best of every `SEGMENT` columns first. A column among the `count` best belongs to one
  of the `count` segments with the best maxima: otherwise the maxima of `count` other segments would
  all rank before it. So the exact selection runs over few columns. (I segments of J columns.)
  """
  size, columns = scores_BxR.shape
  if columns <= 2 * count * SEGMENT:
    return tuple(jax.lax.top_k(scores_BxR, count))
  missing = -columns % SEGMENT
  scores_BxR = jnp.pad(scores_BxR, ((0, 0), (0, missing)), constant_values=-jnp.inf)
  scores_BxIxJ = scores_BxR.reshape(size, -1, SEGMENT)
  _, segment_BxC = jax.lax.top_k(jnp.max(scores_BxIxJ, axis=2), count)
  segment_BxC = jnp.sort(segment_BxC, axis=1)  # in the order of columns, so that ties stay ordered
  near_BxCxJ = jnp.take_along_axis(scores_BxIxJ, segment_BxC[:, :, None], axis=1)
  best_BxC, place_BxC = jax.lax.top_k(near_BxCxJ.reshape(size, -1), count)
  segment_BxC = jnp.take_along_axis(segment_BxC, place_BxC // SEGMENT, axis=1)
  return best_BxC, segment_BxC * SEGMENT + place_BxC % SEGMENT


def _merge(scores_BxC: Array, rows_BxC: Array, count: int) -> tuple[Array, Array]:
  """The `count` best of each row, ties to the earlier column."""
  best_BxC, order_BxC = jax.lax.top_k(scores_BxC, count)
  return best_BxC, jnp.take_along_axis(rows_BxC, order_BxC, axis=1)
