"""The confidence gate on anchor updates (`config.bank.gate`).

Not in the paper. A pair whose image and caption disagree is likely to be noisy, so its anchors in
the memory bank should move less: the update rate alpha is multiplied by a confidence c in [0, 1].
With v and t the features that are written, Bv and Bt the banks, and g the image of a row:

- `pair`: c_i = cos(v_i, t_i)
- `rank`: c_i = 1 / log2(2 + r_i), r_i = #{j : g_j != g_i, cos(v_i, Bt_j) > cos(v_i, t_i)}, the rank
  of the caption among all captions of the bank for its image; the discount is that of DCG. Costs a
  second product with the bank, as large as the search for neighbours.
- `neighbours`: the mean of [cos(v_i, t_j) + cos(t_i, v_j)] / 2 over the pair itself and its mined
  neighbours; `pair` where none was mined.
- `running`: c_i = (cos(v_i, t_i) + c_i of the pair's last visit) / 2, kept in the bank: one more
  float per row.

Cosines below 0 count as 0. A row's first feature is always written whole, as are all of epoch 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgia_jax.method import memory_bank
from dgia_jax.method.caption_ranks import caption_ranks
from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.losses import normalize
from dgia_jax.method.mining import Batch, FeaturePair

GATES = ("off", "pair", "rank", "neighbours", "running")

_RUNNING_WEIGHT = 0.5  # of the newest confidence; a pair is visited once per epoch


def _cosine_of_rows(
  a: Float[Array | np.ndarray, "*N D"], b: Float[Array | np.ndarray, "*N D"]
) -> Float[Array, "*N"]:
  """Cosine of each row of `a` with the same row of `b`."""
  return jnp.sum(normalize(a) * normalize(b), axis=-1)


def pair_confidence(features: FeaturePair) -> Float[Array, " B"]:
  """The cosine of each pair's two features."""
  return jnp.clip(_cosine_of_rows(*features), 0.0, 1.0)


def _across_modalities(
  features: FeaturePair,
  neighbour_images: Float[Array | np.ndarray, "B K D"],
  neighbour_texts: Float[Array | np.ndarray, "B K D"],
) -> Float[Array, "B K"]:
  """[cos(v_i, t_j) + cos(t_i, v_j)] / 2 of each pair i and each of its neighbours j."""
  cosine = lambda own_BxD, other_BxKxD: _cosine_of_rows(
    jnp.broadcast_to(own_BxD[:, None], other_BxKxD.shape), other_BxKxD
  )
  return (cosine(features.image, neighbour_texts) + cosine(features.text, neighbour_images)) / 2


def rank_confidence(ranks_B: Int[Array | np.ndarray, " B"]) -> Float[Array, " B"]:
  """DCG's discount of a rank, which counts from 0: 1, 0.63, 0.5, 0.43, ..."""
  return 1.0 / jnp.log2(2.0 + ranks_B)


def neighbour_confidence(
  features: FeaturePair,
  neighbour_images: Float[Array | np.ndarray, "B K D"],
  neighbour_texts: Float[Array | np.ndarray, "B K D"],
  valid_BxK: Bool[Array | np.ndarray, "B K"],
) -> Float[Array, " B"]:
  """The mean cosine across modalities of each pair with itself and its neighbours."""
  cosine_BxK = _across_modalities(features, neighbour_images, neighbour_texts)
  total_B = _cosine_of_rows(*features) + jnp.sum(jnp.where(valid_BxK, cosine_BxK, 0.0), axis=1)
  return jnp.clip(total_B / (1 + jnp.sum(valid_BxK, axis=1)), 0.0, 1.0)


def running_confidence(
  newest_B: Float[Array | np.ndarray, " B"],
  stored_B: Float[Array | np.ndarray, " B"],
  written_B: Bool[Array | np.ndarray, " B"],
) -> Float[Array, " B"]:
  """The moving average of confidences; the newest where no row was written before."""
  blended_B = _RUNNING_WEIGHT * newest_B + (1 - _RUNNING_WEIGHT) * stored_B
  return jnp.where(written_B, blended_B, newest_B)


def confidence(
  gate: str,
  bank: memory_bank.Bank,
  batch: Batch,
  features: FeaturePair,
  neighbours: Neighbours,
  neighbour_features: tuple,
  *,
  mesh: jax.sharding.Mesh,
  block_rows: int,
) -> Float[Array, " B"]:
  """The confidence in each pair, by which its update rate is multiplied.

  Args:
    gate: one of `GATES`; "off" trusts every pair.
    bank: before the update.
    batch: see `mining.Batch`.
    features: those to be written, unnormalised; constants for the gradient.
    neighbours, neighbour_features: the mined rows and their (image, text) features (B, K, D).
    mesh: the devices that the bank is split over.
    block_rows: `config.bank.block_rows`.

  Raises:
    ValueError: for an unknown gate.
  """
  if gate not in GATES:
    raise ValueError(f"gate must be one of {GATES}, not {gate!r}")
  if gate == "off":
    return jnp.ones(features.image.shape[0], jnp.float32)
  features, neighbour_features = jax.lax.stop_gradient((features, neighbour_features))
  if gate == "rank":
    ranks_B = caption_ranks(bank, *features, batch["image_index"], mesh=mesh, block_rows=block_rows)
    return rank_confidence(ranks_B)
  if gate == "neighbours":
    return neighbour_confidence(features, *neighbour_features, neighbours.valid)
  newest_B = pair_confidence(features)
  if gate == "pair":
    return newest_B
  stored_B, group_B = memory_bank.gather((bank.confidence, bank.group), batch["index"], mesh=mesh)
  # A row outside the bank (padding) gives zeros; it is not written either.
  return running_confidence(newest_B, stored_B, group_B >= 0)
