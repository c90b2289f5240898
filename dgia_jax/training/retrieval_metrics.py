"""Retrieval scores of a ranking (R@K, mAP, mINP) and the precision of mined relations.

Nothing is sorted. The rank of a correct gallery item is one plus the number of items that beat it.
A query with P correct items therefore costs P passes over its similarities. A person has few
images, so this is far cheaper than sorting the gallery. Queries are ranked in blocks of one
compiled shape, so 20,000 queries against a gallery of 20,000 never need their full matrix.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

KS = (1, 5, 10)
BLOCK = 512  # queries ranked at a time: 40 MB of similarities against a gallery of 20,000

Ids = Shaped[Array | np.ndarray, " _"] | Sequence  # identity labels of any type


class RankingStatistics(NamedTuple):
  """The rank statistics of each query; fractions, not percent."""

  first_rank: Int[Array | np.ndarray, " Q"]  # rank of the first correct item, from 1; G + 1 if none
  average_precision: Float[Array | np.ndarray, " Q"]  # mean of correct items so far / rank
  inverse_negative_penalty: Float[Array | np.ndarray, " Q"]  # correct items / rank of the last one
  has_positive: Bool[Array | np.ndarray, " Q"]  # False: no correct item, so both fractions are 0


@jax.jit
def ranking_statistics(
  similarity_QxG: Float[Array | np.ndarray, "Q G"],
  query_ids_Q: Int[Array | np.ndarray, " Q"],
  gallery_ids_G: Int[Array | np.ndarray, " G"],
) -> RankingStatistics:
  """Ranks the gallery for every query and computes rank statistics.

  A larger similarity ranks first; of equal similarities, the lower gallery index. Equal ids are a
  correct match. A query with a NaN among its similarities has no defined ranking, so its fractions
  are NaN.
  """
  num_queries, num_items = similarity_QxG.shape
  by_id_G = jnp.argsort(gallery_ids_G, stable=True).astype(jnp.int32)
  start_Q, end_Q = (
    jnp.searchsorted(gallery_ids_G[by_id_G], query_ids_Q, side=side).astype(jnp.int32)
    for side in ("left", "right")
  )
  count_Q = end_Q - start_Q
  index_1xG = jnp.arange(num_items, dtype=jnp.int32)[None, :]
  correct_QxG = query_ids_Q[:, None] == gallery_ids_G[None, :]

  def rank_one(i, carry):
    """Adds the i-th correct item, in gallery order, of every query that has one."""
    first_Q, last_Q, precision_Q = carry
    item_Qx1 = by_id_G[jnp.minimum(start_Q + i, num_items - 1)][:, None]
    score_Qx1 = jnp.take_along_axis(similarity_QxG, item_Qx1, axis=1)
    beats_QxG = (similarity_QxG > score_Qx1) | (
      (similarity_QxG == score_Qx1) & (index_1xG < item_Qx1)
    )
    # One reduction computes both counts, so the matrix is read once (three times faster than two
    # sums). It must start from 0, the neutral element: a parallel reduction starts every part with
    # it.
    better_Q, better_and_correct_Q = jax.lax.reduce(
      (beats_QxG.astype(jnp.int32), (beats_QxG & correct_QxG).astype(jnp.int32)),
      (jnp.int32(0), jnp.int32(0)),
      lambda a, b: (a[0] + b[0], a[1] + b[1]),
      dimensions=(1,),
    )
    rank_Q, correct_so_far_Q = better_Q + 1, better_and_correct_Q + 1
    exists_Q = i < count_Q
    return (
      jnp.where(exists_Q, jnp.minimum(first_Q, rank_Q), first_Q),
      jnp.where(exists_Q, jnp.maximum(last_Q, rank_Q), last_Q),
      precision_Q + jnp.where(exists_Q, correct_so_far_Q / rank_Q, 0.0),
    )

  nothing = (
    jnp.full((num_queries,), num_items + 1, jnp.int32),
    jnp.zeros((num_queries,), jnp.int32),
    jnp.zeros((num_queries,), jnp.float32),
  )
  first_Q, last_Q, precision_Q = jax.lax.fori_loop(0, jnp.max(count_Q), rank_one, nothing)
  # NaN compares as "not better", which would make a broken model look perfect.
  poison_Q = jnp.where(jnp.any(jnp.isnan(similarity_QxG), axis=1), jnp.nan, 0.0)
  return RankingStatistics(
    first_rank=first_Q,
    average_precision=precision_Q / jnp.maximum(count_Q, 1) + poison_Q,
    inverse_negative_penalty=count_Q / jnp.maximum(last_Q, 1) + poison_Q,
    has_positive=count_Q > 0,
  )


def retrieval_metrics(
  similarity: Real[Array | np.ndarray, "Q G"],
  query_ids: Ids,
  gallery_ids: Ids,
  ks: Sequence[int] = KS,
  block: int = BLOCK,
) -> dict[str, float]:
  """Computes R@K, mAP and mINP of a similarity matrix, in percent, as the paper does.

  Queries without a correct gallery item are excluded from every mean; `queries_without_match`
  counts them.

  Args:
    similarity: larger is more similar; ranked in float32, ties by the lowest gallery index.
    query_ids, gallery_ids: equal ids are a correct match.
    ks: the K of R@K; K may exceed G.
    block: queries ranked at a time; bounds the memory and changes no score.

  Returns:
    {"R1": .., "R5": .., "R10": .., "mAP": .., "mINP": ..}

  Raises:
    ValueError: the shapes do not fit, a similarity is NaN, or no query has a correct item.
  """
  similarity_QxG = np.asarray(similarity, np.float32)
  query_ids_Q, gallery_ids_G = _compact_ids(query_ids, gallery_ids)
  expected = (len(query_ids_Q), len(gallery_ids_G))
  if similarity_QxG.shape != expected:
    raise ValueError(f"similarity has shape {similarity_QxG.shape}, the ids need {expected}")
  gallery_ids_G = jax.device_put(gallery_ids_G)

  def score(rows, ids):
    return ranking_statistics(rows, ids, gallery_ids_G)

  return _summary(_in_blocks(score, similarity_QxG, query_ids_Q, block), ks)


def retrieval_metrics_from_features(
  query_features: Float[Array | np.ndarray, "Q D"],
  gallery_features: Float[Array | np.ndarray, "G D"],
  query_ids: Ids,
  gallery_ids: Ids,
  ks: Sequence[int] = KS,
  block: int = BLOCK,
  layouts: tuple[jax.sharding.Sharding, jax.sharding.Sharding] | None = None,
  adjust: jax.tree_util.Partial | None = None,
) -> dict[str, float]:
  """Like `retrieval_metrics` on cosine similarities, without storing the (Q, G) matrix.

  It needs about block x G x 4 bytes besides the features, which need not be normalised.

  Args:
    query_features, gallery_features: a feature of NaN or of norm 0 has NaN similarities.
    query_ids, gallery_ids, ks, block: as in `retrieval_metrics`.
    layouts: shardings of a block of queries and of the gallery, to rank on a mesh; None ranks on
      one device.
    adjust: maps cosines (R, G) of a block of queries and the gallery's features of norm 1 to the
      similarities that are ranked; None ranks by cosine.

  Raises:
    ValueError: as `retrieval_metrics`.
  """
  query_QxD = np.asarray(query_features, np.float32)
  gallery_GxD = np.asarray(gallery_features, np.float32)
  query_ids_Q, gallery_ids_G = _compact_ids(query_ids, gallery_ids)
  expected = (len(query_ids_Q), len(gallery_ids_G))
  if (len(query_QxD), len(gallery_GxD)) != expected:
    raise ValueError(
      f"{len(query_QxD)} query and {len(gallery_GxD)} gallery features, the ids need {expected}"
    )
  query_layout, gallery_layout = layouts or (None, None)
  gallery_GxD, gallery_ids_G = jax.device_put((gallery_GxD, gallery_ids_G), gallery_layout)

  def score(rows, ids):
    return _cosine_statistics(rows, gallery_GxD, ids, gallery_ids_G, adjust)

  return _summary(_in_blocks(score, query_QxD, query_ids_Q, block, query_layout), ks)


def queries_without_match(query_ids: Ids, gallery_ids: Ids) -> int:
  """Counts the queries without a correct gallery item, which every mean excludes."""
  return int(np.sum(~np.isin(np.asarray(query_ids), np.asarray(gallery_ids))))


def chance_level(query_ids: Ids, gallery_ids: Ids) -> float:
  """R@1 that a random ranking reaches on average, in percent; 0 if no query has a correct item.

  Raises:
    ValueError: there are no queries or no gallery items.
  """
  query_ids_Q, gallery_ids_G = _compact_ids(query_ids, gallery_ids)
  size = 1 + max(query_ids_Q.max(), gallery_ids_G.max())
  correct_Q = np.bincount(gallery_ids_G, minlength=size)[query_ids_Q]
  matched = correct_Q[correct_Q > 0]
  return 100.0 * float(matched.mean()) / len(gallery_ids_G) if matched.size else 0.0


def relation_accuracy(correct: int, mined: int) -> float | None:
  """Percent of mined relations that are correct (paper Figure 4); None if none was mined."""
  return 100.0 * correct / mined if mined else None


def _unit(x_NxD: jax.Array) -> jax.Array:
  return x_NxD / jnp.linalg.norm(x_NxD, axis=1, keepdims=True)


@jax.jit
def _cosine_statistics(
  query_QxD: jax.Array,
  gallery_GxD: jax.Array,
  query_ids_Q: jax.Array,
  gallery_ids_G: jax.Array,
  adjust: jax.tree_util.Partial | None,
) -> RankingStatistics:
  gallery_GxD = _unit(gallery_GxD)
  similarity_QxG = jnp.dot(_unit(query_QxD), gallery_GxD.T, precision=jax.lax.Precision.HIGHEST)
  if adjust is not None:
    similarity_QxG = adjust(similarity_QxG, gallery_GxD)
  return ranking_statistics(similarity_QxG, query_ids_Q, gallery_ids_G)


def _compact_ids(query_ids: Ids, gallery_ids: Ids) -> list[np.ndarray]:
  """Maps ids of any type to int32 labels 0, 1, .. that are equal wherever the ids are."""
  query_ids, gallery_ids = np.asarray(query_ids), np.asarray(gallery_ids)
  if query_ids.ndim != 1 or gallery_ids.ndim != 1 or not query_ids.size or not gallery_ids.size:
    raise ValueError(
      "query_ids and gallery_ids must be non-empty and one-dimensional, not of shapes "
      f"{query_ids.shape} and {gallery_ids.shape}"
    )
  _, labels = np.unique(np.concatenate([query_ids, gallery_ids]), return_inverse=True)
  return np.split(labels.astype(np.int32), [len(query_ids)])


def _in_blocks(
  score: Callable[[jax.Array, jax.Array], RankingStatistics],
  rows: np.ndarray,
  ids: np.ndarray,
  block: int,
  layout: jax.sharding.Sharding | None = None,
) -> RankingStatistics:
  """Applies `score(rows, ids)` to blocks of one static shape and removes the padding."""
  shards = 1 if layout is None else layout.num_devices
  block = -(-min(block, len(rows)) // shards) * shards
  results = []
  for start in range(0, len(rows), block):
    part = (rows[start : start + block], ids[start : start + block])
    missing = block - len(part[0])
    if missing:  # copies of the last query, so that no row has norm 0
      part = tuple(np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for x in part)
    statistics = jax.device_get(score(*jax.device_put(part, layout)))
    results.append([x[: block - missing] for x in statistics])
  return RankingStatistics(*(np.concatenate(field) for field in zip(*results, strict=True)))


def _summary(statistics: RankingStatistics, ks: Sequence[int]) -> dict[str, float]:
  has_positive_Q = statistics.has_positive
  if not has_positive_Q.any():
    raise ValueError(
      f"none of the {len(has_positive_Q)} queries has a correct item in the gallery: "
      "query_ids and gallery_ids share no identity"
    )
  if np.isnan(statistics.average_precision).any():
    query = int(np.argmax(np.isnan(statistics.average_precision)))
    raise ValueError(f"similarities of query {query} hold NaN: they cannot be ranked")
  first_rank = statistics.first_rank[has_positive_Q]
  values = {
    **{f"R{k}": first_rank <= k for k in ks},
    "mAP": statistics.average_precision[has_positive_Q],
    "mINP": statistics.inverse_negative_penalty[has_positive_Q],
  }
  return {name: 100.0 * float(np.mean(value, dtype=np.float64)) for name, value in values.items()}
