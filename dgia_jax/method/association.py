"""Who is the same person? Relations mined without identity labels, and the targets they make.

Two granularities (paper sections 3.2 and 3.3). LOCAL: two pairs of one batch are associated when
both their images and their texts are alike. GLOBAL: a pair's image, the anchor, is compared with
the features of every training pair in the memory bank, and its best neighbours join the batch.

Everything is written for ONE anchor and vmapped over the batch. Nothing here carries a gradient:
relations and targets are constants of the step.

Shape letters: B batch, D feature, C candidates an anchor may choose from, K neighbours it keeps.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgia_jax.method import losses

MODALITIES = ("both", "image", "text", "none")
EXCLUSIONS = ("top1", "self")
_NEARLY_ONE = 0.99999


# ---------------------------------------------------------------- local, section 3.2


def raised_threshold(cosine_BxB, threshold, deviations, row_mask=None):
  """A threshold that follows the batch: at least its mean cosine and some standard deviations.

  Not in the paper. Where all features are alike a fixed threshold lets everything pass; what is
  far above the batch's own mean is still rare. Mean and deviation are those of arctanh(cosine)
  (Fisher's transformation), so that however widely cosines spread the threshold stays below 1.

  Args:
    cosine_BxB: (B, B) cosines of the batch with itself.
    threshold: the least it can be.
    deviations: standard deviations above the mean; 0 gives `threshold` alone.
    row_mask: (B,) bool, False for padded rows, which count nowhere.

  Returns:
    A float, or a float32 scalar where `deviations` is not 0.
  """
  if not deviations:
    return threshold
  size = cosine_BxB.shape[0]
  counted_BxB = ~jnp.eye(size, dtype=bool)
  if row_mask is not None:
    counted_BxB &= row_mask[:, None] & row_mask[None, :]
  # Two equal rows are as far away as 0.99999 is, rather than infinitely far.
  spread_BxB = jnp.arctanh(jnp.clip(cosine_BxB, -_NEARLY_ONE, _NEARLY_ONE))
  mean = losses.masked_mean(spread_BxB, counted_BxB)
  variance = losses.masked_mean(jnp.square(spread_BxB - mean), counted_BxB)
  return jnp.maximum(threshold, jnp.tanh(mean + deviations * jnp.sqrt(variance)))


def _local_relation_of_anchor(image_scores_B, text_scores_B, own, thresholds, modality):
  """One anchor's row of A: which pairs of the batch show its person. (B,), (B,) -> (B,) bool."""
  image_B, text_B = image_scores_B > thresholds[0], text_scores_B > thresholds[1]
  related_B = {
    "both": image_B & text_B,
    "image": image_B,
    "text": text_B,
    "none": jnp.zeros_like(image_B),
  }[modality]
  return related_B | (jnp.arange(related_B.shape[0]) == own)


def local_relations(
  image_features, text_features, threshold=0.7, modality="both", row_mask=None, deviations=0.0
):
  """In-batch associations A (section 3.2): A_ij = 1 when i and j are taken to be one person.

  Args:
    image_features, text_features: (B, D), unnormalised.
    threshold: theta; a cosine must be strictly larger.
    modality: "both" similarities must exceed it (the paper), or the "image" or "text" one alone
      (Table 5), or "none": no pair is related to another.
    row_mask: (B,) bool, False for padded rows, which are related to nothing but themselves.
    deviations: see `raised_threshold`; each modality has its own.

  Returns:
    (B, B) bool, True on the diagonal, without gradient.

  Raises:
    ValueError: for an unknown modality.
  """
  if modality not in MODALITIES:
    raise ValueError(f"modality must be one of {MODALITIES}, not {modality!r}")
  image_features, text_features = jax.lax.stop_gradient((image_features, text_features))
  size = image_features.shape[0]
  cosines = [losses.cosine(features, features) for features in (image_features, text_features)]
  thresholds = [raised_threshold(each, threshold, deviations, row_mask) for each in cosines]
  of_anchor = functools.partial(_local_relation_of_anchor, thresholds=thresholds, modality=modality)
  related_BxB = jax.vmap(of_anchor)(*cosines, jnp.arange(size))
  if row_mask is not None:
    related_BxB &= (row_mask[:, None] & row_mask[None, :]) | jnp.eye(size, dtype=bool)
  return related_BxB


def targets_of_labels(labels):
  """Row softmax of a label matrix in which zeros mean "not this one": (B, C) -> (B, C) float32."""
  return jax.nn.softmax(jnp.where(labels == 0, -jnp.inf, labels), axis=1)


def targets_of_relations(relations_BxB, relation_label=0.1):
  """Target distributions q of local relations: row softmax of I + lambda (A - I).

  Args:
    relations_BxB: (B, B) bool, True on the diagonal.
    relation_label: lambda, the label of a mined relation beside 1 for the true pair.

  Returns:
    (B, B) float32, rows sum to 1.
  """
  identity_BxB = jnp.eye(relations_BxB.shape[0], dtype=jnp.float32)
  return targets_of_labels(identity_BxB + relation_label * (relations_BxB - identity_BxB))


def local_targets(
  image_features, text_features, threshold=0.7, relation_label=0.1, modality="both"
):
  """Target distributions mined inside the batch (section 3.2).

  Args:
    image_features, text_features: (B, D), unnormalised.
    threshold: theta, strict.
    relation_label: lambda.
    modality: "both", "image", "text" or "none".

  Returns:
    (B, B) float32 target probabilities, without gradient.
  """
  relations_BxB = local_relations(image_features, text_features, threshold, modality)
  return targets_of_relations(relations_BxB, relation_label)


# ---------------------------------------------------------------- global, section 3.3


class Neighbours(NamedTuple):
  """What the anchors mined from the bank; `valid` is False in slots that stayed empty."""

  rows: jax.Array  # (B, K) int32 bank row, best first
  scores: jax.Array  # (B, K) float32 cosine of anchor and row
  valid: jax.Array  # (B, K) bool


def no_neighbours(size, k):
  """Neighbours (size, k) with every slot empty."""
  shape = (size, k)
  return Neighbours(jnp.full(shape, -1), jnp.full(shape, -jnp.inf), jnp.zeros(shape, bool))


def confidence_weights_of_anchor(scores_K, valid_K, soft_scale=1.0):
  """One anchor's dynamic weights (section 3.3): weakly similar neighbours get MORE weight.

  w = 1 - softmax(soft_scale * [1, s_1, ..., s_K]) over the valid entries, first entry dropped;
  0 in empty slots.
  """
  bracket = jnp.concatenate([jnp.ones((1,)), jnp.where(valid_K, scores_K, -jnp.inf)])
  return jnp.where(valid_K, 1.0 - jax.nn.softmax(bracket * soft_scale)[1:], 0.0)


def _neighbours_of_anchor(scores_C, rows_C, groups_C, own_row, own_group, *, k, threshold, exclude):
  """One anchor's neighbours among its best candidates, which come in descending order."""
  # An anchor's group is its image: candidates that hold the same image are dropped on request.
  same_image_C = (groups_C == own_group) & (rows_C != own_row)
  first = 1 if exclude == "top1" else 0
  dropped_C = same_image_C | (jnp.arange(rows_C.shape[0]) < first)
  if exclude == "self":
    dropped_C |= rows_C == own_row
  # A stable sort moves what is dropped behind what is kept and leaves the order as it was.
  kept_K = jnp.argsort(dropped_C, stable=True)[:k]
  valid_K = ~dropped_C[kept_K] & (scores_C[kept_K] > threshold)
  return Neighbours(rows_C[kept_K], scores_C[kept_K], valid_K)


def num_candidates(k, same_image_rows=0):
  """How many best bank rows an anchor needs to see so that k remain: one is dropped, and twins."""
  return k + 1 + same_image_rows


def global_neighbours(
  scores_BxC, rows_BxC, own_row_B, *, k=3, threshold=0.7, exclude="top1", groups=None
):
  """Chooses every anchor's neighbours among its best-scored bank rows (section 3.3).

  Args:
    scores_BxC: cosines in descending order (-inf where a candidate does not exist).
    rows_BxC: (B, C) int32 bank rows of these candidates.
    own_row_B: (B,) int32 the bank row of the anchor's own pair.
    k: how many neighbours an anchor may keep; C should be `num_candidates(k, ...)`.
    threshold: theta; a neighbour's cosine must be strictly larger.
    exclude: "top1" drops the best-ranked candidate whatever it is (released code), "self" drops
      the anchor's own row wherever it ranks.
    groups: None, or (groups_BxC, own_group_B) int32: candidates of the anchor's own group (the
      same image, another caption) are dropped too.

  Returns:
    Neighbours of shape (B, k).

  Raises:
    ValueError: for an unknown `exclude`.
  """
  if exclude not in EXCLUSIONS:
    raise ValueError(f"exclude must be one of {EXCLUSIONS}, not {exclude!r}")
  if groups is None:
    groups = (jnp.full_like(rows_BxC, -1), jnp.full_like(own_row_B, -2))
  missing = num_candidates(k) - scores_BxC.shape[1]
  if missing > 0:  # a bank of fewer rows than an anchor could choose from
    pad = ((0, 0), (0, missing))
    scores_BxC = jnp.pad(scores_BxC, pad, constant_values=-jnp.inf)
    rows_BxC = jnp.pad(rows_BxC, pad, constant_values=-1)
    groups = (jnp.pad(groups[0], pad, constant_values=-1), groups[1])
  of_anchor = functools.partial(_neighbours_of_anchor, k=k, threshold=threshold, exclude=exclude)
  return jax.vmap(of_anchor)(scores_BxC, rows_BxC, groups[0], own_row_B, groups[1])


def agreeing(neighbours, text_features, neighbour_texts, threshold):
  """Drops neighbours whose text is not alike the anchor's. Not in the paper.

  Args:
    neighbours: Neighbours (B, K).
    text_features: (B, D), unnormalised, of the anchors' own pairs.
    neighbour_texts: (B, K, D), unnormalised.
    threshold: a cosine must be strictly larger.

  Returns:
    The Neighbours, fewer of them valid.
  """
  cosine_of_anchor = lambda text_D, texts_KxD: losses.cosine(text_D[None], texts_KxD)[0]
  cosine_BxK = jax.vmap(cosine_of_anchor)(text_features, neighbour_texts)
  return neighbours._replace(valid=neighbours.valid & (cosine_BxK > threshold))


def mutual(neighbours, own_B, found_back_BxKxC):
  """Drops neighbours that do not find the anchor back. Not in the paper.

  Args:
    neighbours: Neighbours (B, K).
    own_B: (B,) int32 the bank row of each anchor's pair, or its image.
    found_back_BxKxC: (B, K, C) int32 the best rows, or their images, that `memory_bank.search`
      gives when each neighbour is the query.

  Returns:
    The Neighbours, fewer of them valid.
  """
  found_BxK = jnp.any(found_back_BxKxC == own_B[:, None, None], axis=2)
  return neighbours._replace(valid=neighbours.valid & found_BxK)


def _beside(own_Bx1, mined_BxK):
  """A pair and what was mined for it, next to each other: (B, 1, ...), (B, K, ...)."""
  return jnp.concatenate([own_Bx1, mined_BxK], axis=1)


def extended_labels(neighbours, soft_scale=1.0, batch_relations=None):
  """Label matrix Y of the batch extended by its mined rows (section 3.3).

  Extended row b (1 + K) is pair b, and row b (1 + K) + s is slot s of its anchor: a group lies
  together, and so on one device. Labels are 1 inside a group (a pair and everything mined for it)
  and 0 elsewhere; in the batch rows the entries of the group's mined members are the anchor's
  confidence weights. Empty slots have label 0 everywhere but on the diagonal.

  Args:
    neighbours: Neighbours (B, K).
    soft_scale: multiplies the bracket of the confidence weights.
    batch_relations: (B, B) bool or None. The released code keeps all other pairs of the batch as
      negatives; pairs given here as related get label 1 in each other's batch rows.

  Returns:
    (B (1 + K), B (1 + K)) float32 labels.
  """
  size, k = neighbours.valid.shape
  weights_BxK = jax.vmap(functools.partial(confidence_weights_of_anchor, soft_scale=soft_scale))(
    neighbours.scores, neighbours.valid
  )
  of_group = lambda own, mined_BxK: _beside(jnp.full((size, 1), own), mined_BxK).reshape(-1)
  group_E, slot_E = jnp.divmod(jnp.arange(size * (1 + k)), 1 + k)
  real_E = of_group(True, neighbours.valid)
  same_ExE = group_E[:, None] == group_E[None, :]
  labels_ExE = jnp.where(slot_E[:, None] == 0, of_group(1.0, weights_BxK)[None, :], 1.0)
  labels_ExE = jnp.where(same_ExE & real_E[None, :] & real_E[:, None], labels_ExE, 0.0)
  labels_ExE = jnp.maximum(labels_ExE, jnp.eye(size * (1 + k)))  # an empty slot is its own group
  if batch_relations is not None:
    related_ExE = jnp.repeat(jnp.repeat(batch_relations, 1 + k, axis=0), 1 + k, axis=1)
    related_ExE &= (slot_E[:, None] == 0) & (slot_E[None, :] == 0)
    labels_ExE = jnp.maximum(labels_ExE, related_ExE.astype(jnp.float32))
  return labels_ExE


def global_association_loss(
  image_features,
  text_features,
  neighbours,
  neighbour_images,
  neighbour_texts,
  *,
  soft_scale=1.0,
  loss_over="all",
  temperature=0.02,
  epsilon=1e-6,
  row_mask=None,
  batch_relations=None,
):
  """Similarity distribution matching over the batch extended by its mined rows (section 3.3).

  Args:
    image_features, text_features: (B, D), unnormalised; gradients flow into these alone.
    neighbours: Neighbours (B, K).
    neighbour_images, neighbour_texts: (B, K, D) the bank rows `neighbours.rows`.
    soft_scale: see `confidence_weights_of_anchor`.
    loss_over: the loss is the mean over "all" rows that exist (released code) or over the
      "batch" rows alone (Eq. 13).
    temperature, epsilon: as in `losses.similarity_distribution_matching`.
    row_mask: (B,) bool, False for padded rows: they and what they mined count nowhere.
    batch_relations: see `extended_labels`.

  Returns:
    Scalar float32.

  Raises:
    ValueError: for unknown `loss_over`.
  """
  if loss_over not in ("all", "batch"):
    raise ValueError(f"loss_over must be 'all' or 'batch', not {loss_over!r}")
  size, k = neighbours.valid.shape
  row_mask = jnp.ones(size, bool) if row_mask is None else row_mask
  neighbours = neighbours._replace(valid=neighbours.valid & row_mask[:, None])
  neighbours, neighbour_images, neighbour_texts = jax.lax.stop_gradient(
    (neighbours, neighbour_images, neighbour_texts)
  )
  extend = lambda batch_BxD, mined_BxKxD: _beside(
    batch_BxD.astype(jnp.float32)[:, None], mined_BxKxD.astype(jnp.float32)
  ).reshape(size * (1 + k), -1)
  exists_E = _beside(row_mask[:, None], neighbours.valid).reshape(-1)
  return losses.similarity_distribution_matching(
    extend(image_features, neighbour_images),
    extend(text_features, neighbour_texts),
    targets_of_labels(extended_labels(neighbours, soft_scale, batch_relations)),
    temperature,
    epsilon,
    row_mask=exists_E,
    loss_mask=None if loss_over == "all" else jnp.arange(size * (1 + k)) % (1 + k) == 0,
  )


def global_loss(
  image_features,
  text_features,
  image_bank,
  text_bank,
  k=3,
  threshold=0.7,
  soft_scale=1.0,
  loss_over="all",
  exclude="top1",
  index=None,
):
  """Global association loss of a batch against whole banks held as plain arrays (section 3.3).

  The training step searches a sharded `memory_bank.Bank` instead; this is the same mathematics in
  one call, anchored on image similarity.

  Args:
    image_features, text_features: (B, D), unnormalised; differentiable.
    image_bank, text_bank: (N, D) one row per training pair, unnormalised, constants.
    k: neighbours an anchor may keep.
    threshold: theta, strict.
    soft_scale: see `confidence_weights_of_anchor`.
    loss_over: "all" (released code) or "batch" (Eq. 13).
    exclude: "top1" (released code) or "self".
    index: (B,) int32 own bank rows; needed when `exclude` is "self".

  Returns:
    Scalar float32.

  Raises:
    ValueError: for unknown `loss_over` or `exclude`, or exclude="self" without `index`.
  """
  if exclude == "self" and index is None:
    raise ValueError("exclude='self' needs `index`, the own bank row of every pair")
  anchors_BxD = jax.lax.stop_gradient(image_features)
  scores_BxN = losses.cosine(anchors_BxD, image_bank)
  scores_BxC, rows_BxC = jax.lax.top_k(scores_BxN, min(num_candidates(k), image_bank.shape[0]))
  own_row_B = jnp.full(anchors_BxD.shape[0], -1, rows_BxC.dtype) if index is None else index
  neighbours = global_neighbours(
    scores_BxC, rows_BxC, own_row_B, k=k, threshold=threshold, exclude=exclude
  )
  return global_association_loss(
    image_features,
    text_features,
    neighbours,
    image_bank[neighbours.rows],
    text_bank[neighbours.rows],
    soft_scale=soft_scale,
    loss_over=loss_over,
  )
