"""Global association (section 3.3): which training pairs show the person of this pair?

A pair's image feature, the anchor, is compared with the memory bank of all training pairs; its best
neighbours join the batch as constants. Neighbours are mined without identity labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgia_jax.method import losses
from dgia_jax.older_names import accepts_older_names

EXCLUSIONS = ("top1", "self")
LOSS_ROWS = ("all", "batch")


class Neighbours(NamedTuple):
  """The bank rows mined for every anchor of the batch; `valid` is False in empty slots."""

  rows: Int[Array | np.ndarray, "B K"]  # best first
  scores: Float[Array | np.ndarray, "B K"]  # cosine of anchor and row
  valid: Bool[Array | np.ndarray, "B K"]


def no_neighbours(size: int, k: int) -> Neighbours:
  """Neighbours of `size` anchors with all `k` slots empty."""
  shape = (size, k)
  return Neighbours(jnp.full(shape, -1), jnp.full(shape, -jnp.inf), jnp.zeros(shape, bool))


def num_candidates(k: int, same_image_rows: int = 0) -> int:
  """Best bank rows to look at, so that `k` remain once one and the same image's are dropped."""
  return k + 1 + same_image_rows


def select_neighbours(
  scores_BxC: Float[Array | np.ndarray, "B C"],
  rows_BxC: Int[Array | np.ndarray, "B C"],
  own_row_B: Int[Array | np.ndarray, " B"],
  *,
  k: int,
  threshold: float | Float[Array, ""],
  exclude: str,
  image_ids: tuple | None = None,
) -> Neighbours:
  """Chooses every anchor's neighbours among its best-scored bank rows.

  Args:
    scores_BxC: cosines in descending order; -inf where a candidate does not exist.
    rows_BxC: bank rows of these candidates.
    own_row_B: the bank row of the anchor's own pair.
    k: neighbours that an anchor may keep; C should be `num_candidates(k, ...)`.
    threshold: theta; a neighbour's cosine must be strictly larger.
    exclude: "top1" drops the best-ranked candidate, whichever it is (released code); "self" drops
      the anchor's own row, wherever it ranks.
    image_ids: None, or the images of (candidates (B, C), anchors (B,)): candidates that show the
      anchor's own image (with another caption) are dropped too, and "top1" then drops the
      best-ranked of the others.

  Raises:
    ValueError: for an unknown `exclude`.
  """
  if exclude not in EXCLUSIONS:
    raise ValueError(f"exclude must be one of {EXCLUSIONS}, not {exclude!r}")
  dropped_BxC = _dropped(rows_BxC, own_row_B, exclude, image_ids)
  missing = num_candidates(k) - scores_BxC.shape[1]
  if missing > 0:  # the bank has fewer rows than an anchor could choose from
    pad = ((0, 0), (0, missing))
    scores_BxC = jnp.pad(scores_BxC, pad, constant_values=-jnp.inf)
    rows_BxC = jnp.pad(rows_BxC, pad, constant_values=-1)
    dropped_BxC = jnp.pad(dropped_BxC, pad)
  # A stable sort moves dropped candidates behind the others and keeps the order of each kind.
  kept_BxK = jnp.argsort(dropped_BxC, axis=1, stable=True)[:, :k]
  rows_BxK, scores_BxK, dropped_BxK = (
    jnp.take_along_axis(jnp.asarray(x_BxC), kept_BxK, axis=1)
    for x_BxC in (rows_BxC, scores_BxC, dropped_BxC)
  )
  return Neighbours(rows_BxK, scores_BxK, ~dropped_BxK & (scores_BxK > threshold))


def _dropped(
  rows_BxC: Int[Array | np.ndarray, "B C"],
  own_row_B: Int[Array | np.ndarray, " B"],
  exclude: str,
  image_ids: tuple | None,
) -> Bool[Array, "B C"]:
  """The candidates that are no neighbours, whatever their score; see `select_neighbours`."""
  own_BxC = jnp.asarray(rows_BxC == own_row_B[:, None])
  same_image_BxC = jnp.zeros(rows_BxC.shape, bool)
  if image_ids is not None:
    image_BxC, own_image_B = image_ids
    same_image_BxC = (image_BxC == own_image_B[:, None]) & ~own_BxC
  if exclude == "self":
    return same_image_BxC | own_BxC
  # The image's other captions may rank above the pair's own row, which is to be dropped as well.
  first_other_BxC = jnp.cumsum(~same_image_BxC, axis=1) == 1
  return same_image_BxC | first_other_BxC


def confidence_weights(neighbours: Neighbours, soft_scale: float = 1.0) -> Float[Array, "B K"]:
  """Target weights of the neighbours: a weakly similar one gets more weight (section 3.3).

  w = 1 - softmax(soft_scale * [1, s_1, ..., s_K]) over the valid entries, without its first entry;
  0 in empty slots. `soft_scale` is an option of the released code, whose recipe uses 1.
  """
  valid_BxK = neighbours.valid
  scores_BxK = jnp.where(valid_BxK, neighbours.scores, -jnp.inf)
  bracket = jnp.pad(scores_BxK, ((0, 0), (1, 0)), constant_values=1.0)
  weights_BxK = 1.0 - jax.nn.softmax(soft_scale * bracket, axis=1)[:, 1:]
  return jnp.where(valid_BxK, weights_BxK, 0.0)


def _interleave(own_Bx1: Array | np.ndarray, mined_BxK: Array | np.ndarray) -> Array:
  """Every pair followed by its neighbours: (B, 1, ...), (B, K, ...) -> (B (1 + K), ...)."""
  together = jnp.concatenate([own_Bx1, mined_BxK], axis=1)
  return together.reshape(-1, *together.shape[2:])


def extended_labels(neighbours: Neighbours, soft_scale: float = 1.0) -> Float[Array, "E E"]:
  """Label matrix Y of the batch extended by its mined rows, E = B (1 + K).

  Row b (1 + K) is pair b, and row b (1 + K) + s is slot s of its anchor, so a pair and its
  neighbours stay on one device. Labels are 1 between a pair and its neighbours and 0 elsewhere; in
  the rows of the batch the neighbours' entries are the confidence weights. An empty slot has
  label 0 everywhere but on the diagonal.
  """
  size, k = neighbours.valid.shape
  per_row = lambda own, mined_BxK: _interleave(jnp.full((size, 1), own), mined_BxK)
  anchor_E, slot_E = jnp.divmod(jnp.arange(size * (1 + k)), 1 + k)
  exists_E = per_row(True, neighbours.valid)
  weight_E = per_row(1.0, confidence_weights(neighbours, soft_scale))
  same_anchor_ExE = anchor_E[:, None] == anchor_E[None, :]
  labels_ExE = jnp.where(slot_E[:, None] == 0, weight_E[None, :], 1.0)
  labels_ExE = jnp.where(same_anchor_ExE & exists_E[None, :] & exists_E[:, None], labels_ExE, 0.0)
  return jnp.where(jnp.eye(size * (1 + k), dtype=bool), 1.0, labels_ExE)


def global_association_loss(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  neighbours: Neighbours,
  neighbour_images: Float[Array | np.ndarray, "B K D"],
  neighbour_texts: Float[Array | np.ndarray, "B K D"],
  *,
  loss_over: str,
  temperature: float | Float[Array, ""],
  epsilon: float,
  soft_scale: float = 1.0,
  row_mask: Bool[Array | np.ndarray, " B"] | None = None,
) -> Float[Array, ""]:
  """Similarity distribution matching over the batch extended by its mined rows (Eq. 13-17).

  Args:
    image_features, text_features: unnormalised; gradients flow only into these.
    neighbours: the mined rows.
    neighbour_images, neighbour_texts: their features in the bank.
    loss_over: the loss is the mean over "all" rows that exist (released code) or over the "batch"
      rows alone (Eq. 13).
    temperature, epsilon: as in `losses.similarity_distribution_matching`.
    soft_scale: see `confidence_weights`.
    row_mask: False for padded rows; they and their neighbours enter no mean.

  Raises:
    ValueError: for an unknown `loss_over`.
  """
  if loss_over not in LOSS_ROWS:
    raise ValueError(f"loss_over must be one of {LOSS_ROWS}, not {loss_over!r}")
  size, k = neighbours.valid.shape
  row_mask = jnp.ones(size, bool) if row_mask is None else row_mask
  neighbours = neighbours._replace(valid=neighbours.valid & row_mask[:, None])
  neighbours, neighbour_images, neighbour_texts = jax.lax.stop_gradient(
    (neighbours, neighbour_images, neighbour_texts)
  )
  extend = lambda batch_BxD, mined_BxKxD: _interleave(
    batch_BxD.astype(jnp.float32)[:, None], mined_BxKxD.astype(jnp.float32)
  )
  return losses.similarity_distribution_matching(
    extend(image_features, neighbour_images),
    extend(text_features, neighbour_texts),
    losses.target_distribution(extended_labels(neighbours, soft_scale)),
    temperature,
    epsilon,
    row_mask=_interleave(row_mask[:, None], neighbours.valid),
    loss_mask=None if loss_over == "all" else jnp.arange(size * (1 + k)) % (1 + k) == 0,
  )


@accepts_older_names(rows="loss_over")
def global_loss(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  image_bank: Float[Array | np.ndarray, "N D"],
  text_bank: Float[Array | np.ndarray, "N D"],
  k: int = 3,
  threshold: float = 0.7,
  soft_scale: float = 1.0,
  loss_over: str = "all",
  exclude: str = "top1",
  index: Int[Array | np.ndarray, " B"] | None = None,
  *,
  temperature: float | Float[Array, ""] = 0.02,
  epsilon: float = 1e-6,
) -> Float[Array, ""]:
  """Global association loss of a batch against whole banks held as plain arrays.

  The training step searches a sharded `memory_bank.Bank` instead. With its temperature and epsilon
  this is the same mathematics in one call, anchored on image similarity and without
  `exclude_same_image`.

  Args:
    image_features, text_features: unnormalised; differentiable.
    image_bank, text_bank: one row per training pair, unnormalised; constants.
    k: neighbours that an anchor may keep.
    threshold: theta, strict.
    soft_scale: see `confidence_weights`.
    loss_over: "all" (released code) or "batch" (Eq. 13).
    exclude: "top1" (released code) or "self".
    index: own bank rows of the pairs; needed when `exclude` is "self".
    temperature, epsilon: as in `losses.similarity_distribution_matching`; the defaults are those of
      `config.loss`.

  Raises:
    ValueError: for an unknown `loss_over` or `exclude`, or exclude="self" without `index`.
  """
  if exclude == "self" and index is None:
    raise ValueError("exclude='self' needs `index`, the own bank row of every pair")
  anchors_BxD = jax.lax.stop_gradient(image_features)
  scores_BxN = losses.cosine(anchors_BxD, image_bank)
  scores_BxC, rows_BxC = jax.lax.top_k(scores_BxN, min(num_candidates(k), image_bank.shape[0]))
  own_row_B = jnp.full(anchors_BxD.shape[0], -1, rows_BxC.dtype) if index is None else index
  neighbours = select_neighbours(
    scores_BxC, rows_BxC, own_row_B, k=k, threshold=threshold, exclude=exclude
  )
  return global_association_loss(
    image_features,
    text_features,
    neighbours,
    image_bank[neighbours.rows],
    text_bank[neighbours.rows],
    loss_over=loss_over,
    temperature=temperature,
    epsilon=epsilon,
    soft_scale=soft_scale,
  )
