"""The probability that a mined relation is right, from pairs that are known without any label.

Not in the paper (`global_association.weights` = "calibrated"). In a batch, an image's own caption
shows its person and other pairs' captions rarely do. How cosines across modalities differ between
these two kinds gives a logistic curve: with means m1 (own) and m0 (other), and var the mean of
their variances,

    P(same person | s) = sigmoid((m1 - m0) / var * (s - (m1 + m0) / 2)),

which is linear discriminant analysis with equal priors. It is fitted in every step, in closed
form. A relation of pair i to bank row j has s = [cos(v_i, Bt_j) + cos(t_i, Bv_j)] / 2, which mining
by images has not looked at. Own captions are trained on, so P is rather too low than too high.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dgia_jax.method import losses
from dgia_jax.method.confidence_gate import across_modalities
from dgia_jax.method.mining import FeaturePair

_LEAST_PROBABILITY = 1e-6
_LEAST_VARIANCE = 1e-6


def log_probability(
  scores: Float[Array | np.ndarray, "*S"],
  known_BxB: Float[Array, "B B"],
  row_mask: Bool[Array | np.ndarray, " B"],
) -> Float[Array, "*S"]:
  """log P(same person) of each score, at least log 1e-6.

  Args:
    scores: mean cosines across modalities of the relations.
    known_BxB: the same of the batch's pairs with each other; own captions are on the diagonal.
    row_mask: False for padded rows, which are not counted.
  """
  own_BxB = jnp.eye(known_BxB.shape[0], dtype=bool)
  real_BxB = row_mask[:, None] & row_mask[None, :]

  def moments(counted_BxB):
    mean = losses.masked_mean(known_BxB, counted_BxB)
    return mean, losses.masked_mean(jnp.square(known_BxB - mean), counted_BxB)

  (mean_own, var_own), (mean_other, var_other) = (
    moments(real_BxB & own_BxB), moments(real_BxB & ~own_BxB)
  )  # fmt: skip
  slope = (mean_own - mean_other) / jnp.maximum((var_own + var_other) / 2, _LEAST_VARIANCE)
  logits = slope * (scores - (mean_own + mean_other) / 2)
  return jnp.maximum(jax.nn.log_sigmoid(logits), np.log(_LEAST_PROBABILITY))


def neighbour_labels(
  features: FeaturePair,
  neighbour_images: Float[Array | np.ndarray, "B K D"],
  neighbour_texts: Float[Array | np.ndarray, "B K D"],
  row_mask: Bool[Array | np.ndarray, " B"],
) -> Float[Array, "B K"]:
  """Labels 1 + log P of mined neighbours.

  The softmax over labels then gives a neighbour P times the probability of the pair itself, whose
  label is 1.
  """
  features, neighbour_images, neighbour_texts = jax.lax.stop_gradient(
    (features, neighbour_images, neighbour_texts)
  )
  cosine_BxB = losses.cosine(*features)
  known_BxB = (cosine_BxB + cosine_BxB.T) / 2
  scores_BxK = across_modalities(features, neighbour_images, neighbour_texts)
  return 1.0 + log_probability(scores_BxK, known_BxB, row_mask)
