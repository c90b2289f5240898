"""Stricter mining than the paper's: fewer wrong relations (`config.strict_mining`).

Independent filters, none of them in the paper or the released code:

- `local_threshold_num_stds`, `global_threshold_num_stds`: a cosine must also exceed the batch's
  mean by some standard deviations
- `require_text_match`: a global neighbour's caption must be similar to the anchor's, too
- `reciprocal`: a global neighbour must retrieve the anchor in return

They replace `mining.mine_local` and `mining.mine_global` in the training step, which does not know
about them. docs/findings.md reports how precise they are and what they gain.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from dgia_jax.method import bank_search, losses, memory_bank, mining
from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.local_association import relations_above
from dgia_jax.method.mining import Batch, FeaturePair

_NEARLY_ONE = 0.99999  # equal rows count as this similar: their arctanh would be infinite


def raised_threshold(
  cosine_BxB: Float[Array | np.ndarray, "B B"],
  threshold: float,
  num_stds: float,
  row_mask: Bool[Array | np.ndarray, " B"] | None = None,
) -> float | Float[Array, ""]:
  """A threshold that follows the batch: at least its mean cosine plus some standard deviations.

  Where all features are similar, everything exceeds a fixed threshold; a cosine far above the
  batch's own mean is still rare. Mean and deviation are those of arctanh(cosine) (Fisher's
  transformation), so that the threshold stays below 1 however widely cosines spread.

  Args:
    cosine_BxB: cosines of the batch with itself.
    threshold: the lower bound of the result.
    num_stds: standard deviations above the mean; 0 returns `threshold`.
    row_mask: False for padded rows, which are not counted.
  """
  if not num_stds:
    return threshold
  counted_BxB = ~jnp.eye(cosine_BxB.shape[0], dtype=bool)
  if row_mask is not None:
    counted_BxB &= row_mask[:, None] & row_mask[None, :]
  fisher_BxB = jnp.arctanh(jnp.clip(cosine_BxB, -_NEARLY_ONE, _NEARLY_ONE))
  mean = losses.masked_mean(fisher_BxB, counted_BxB)
  variance = losses.masked_mean(jnp.square(fisher_BxB - mean), counted_BxB)
  return jnp.maximum(threshold, jnp.tanh(mean + num_stds * jnp.sqrt(variance)))


def keep_text_matches(
  neighbours: Neighbours,
  text_features: Float[Array | np.ndarray, "B D"],
  neighbour_texts: Float[Array | np.ndarray, "B K D"],
  threshold: ScalarLike,
) -> Neighbours:
  """Keeps the neighbours whose caption is more similar to the anchor's than the threshold."""
  cosine_of_anchor = lambda text_D, texts_KxD: losses.cosine(text_D[None], texts_KxD)[0]
  cosine_BxK = jax.vmap(cosine_of_anchor)(text_features, neighbour_texts)
  return neighbours._replace(valid=neighbours.valid & (cosine_BxK > threshold))


def keep_reciprocal(
  neighbours: Neighbours,
  own_B: Int[Array | np.ndarray, " B"],
  retrieved_BxKxC: Int[Array | np.ndarray, "B K C"],
) -> Neighbours:
  """Keeps the neighbours that retrieve the anchor in return.

  Args:
    neighbours: the mined rows.
    own_B: the bank row of each anchor's pair, or its image.
    retrieved_BxKxC: the best rows, or their images, when each neighbour is the query.
  """
  retrieves_BxK = jnp.any(retrieved_BxKxC == own_B[:, None, None], axis=2)
  return neighbours._replace(valid=neighbours.valid & retrieves_BxK)


def mine_local(
  features: FeaturePair, batch: Batch, *, settings: Any, strict: Any
) -> Bool[Array, "B B"]:
  """`mining.mine_local` with thresholds that follow the batch, one per modality."""
  thresholds = tuple(
    raised_threshold(
      losses.cosine(each, each),
      settings.threshold,
      strict.local_threshold_num_stds,
      batch["mask"],
    )
    for each in jax.lax.stop_gradient(features)
  )
  return relations_above(*features, thresholds, settings.modality, batch["mask"])


def mine_global(
  bank: memory_bank.Bank,
  features: FeaturePair,
  batch: Batch,
  *,
  settings: Any,
  strict: Any,
  mesh: jax.sharding.Mesh,
  block_rows: int,
  same_image_rows: int,
) -> Neighbours:
  """`mining.mine_global`, then the filters that are switched on.

  Args:
    bank, features, batch, settings, mesh, block_rows, same_image_rows: as `mining.mine_global`.
    strict: `config.strict_mining`.
  """
  features = jax.lax.stop_gradient(features)
  anchors = {"image": features[:1], "text": features[1:], "both": features}[settings.anchor]
  raise_for = lambda cosine_BxB: raised_threshold(
    cosine_BxB, settings.threshold, strict.global_threshold_num_stds, batch["mask"]
  )
  anchor_cosine_BxB = sum(losses.cosine(each, each) for each in anchors) / len(anchors)
  neighbours = mining.mine_global(
    bank,
    features,
    batch,
    settings=settings,
    mesh=mesh,
    block_rows=block_rows,
    same_image_rows=same_image_rows,
    threshold=raise_for(anchor_cosine_BxB),
  )
  mined = memory_bank.gather((bank.image, bank.text), neighbours.rows, mesh=mesh)
  if strict.require_text_match:
    threshold = raise_for(losses.cosine(features.text, features.text))
    neighbours = keep_text_matches(neighbours, features.text, mined[1], threshold)
  if strict.reciprocal:
    flat = lambda mined_BxKxD: mined_BxKxD.reshape(-1, mined_BxKxD.shape[-1])
    _, rows = bank_search.search(
      bank,
      jax.tree.map(flat, mined),
      mining.candidates_per_anchor(settings, same_image_rows),
      mesh=mesh,
      anchor=settings.anchor,
      block_rows=block_rows,
    )
    retrieved = rows.reshape(*neighbours.rows.shape, -1)
    own = batch["index"]
    if settings.exclude_same_image:  # images then retrieve each other, whichever caption they have
      retrieved, own = memory_bank.gather(bank.group, retrieved, mesh=mesh), batch["image_index"]
    neighbours = keep_reciprocal(neighbours, own, retrieved)
  return neighbours
