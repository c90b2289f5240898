"""The two losses of the method, given features and target distributions. Pure functions.

The four terms of the training objective are these two functions on different inputs:

- L_itc: `itc(v, t)`
- L_local: `similarity_distribution_matching` of v, t and their local targets
- L_global: the same on the batch extended by mined bank rows
- L_consistency: the same of the distorted views v', t' and their local targets
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

ITC_REDUCTIONS = ("mean", "sum")

_NO_PROBABILITY = np.finfo(np.float32).min / 2  # as a logit; finite, so that 0 * log 0 is no NaN


def inverse_norm(features: Float[Array | np.ndarray, "*N D"]) -> Float[Array, "*N"]:
  """1 / L2 norm of every row, without an epsilon; 0 for rows of zeros."""
  squared = jnp.sum(jnp.square(features.astype(jnp.float32)), axis=-1)
  # The inner `where` keeps the gradient of rows of zeros (unused slots) at 0 instead of NaN.
  return jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def normalize(features: Float[Array | np.ndarray, "*N D"]) -> Float[Array, "*N D"]:
  """Every row divided by its L2 norm, in float32."""
  return features.astype(jnp.float32) * inverse_norm(features)[..., None]


def cosine(
  a_NxD: Float[Array | np.ndarray, "N D"], b_MxD: Float[Array | np.ndarray, "M D"]
) -> Float[Array, "N M"]:
  """Cosine similarity of every row of `a` with every row of `b`, in float32."""
  return jnp.dot(normalize(a_NxD), normalize(b_MxD).T, precision=jax.lax.Precision.HIGHEST)


def masked_mean(
  values: Float[Array, "*B"], mask: Bool[Array | np.ndarray, "*B"] | None = None
) -> Float[Array, ""]:
  """Mean over the entries whose mask is True; over all entries without a mask."""
  if mask is None:
    return jnp.mean(values)
  return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def target_distribution(labels: Float[Array | np.ndarray, "B C"]) -> Float[Array, "B C"]:
  """Row softmax of a label matrix; an entry of 0 takes no probability."""
  return jax.nn.softmax(jnp.where(labels == 0, -jnp.inf, labels), axis=1)


def _log_softmax(
  logits_BxB: Float[Array, "B C"], column_mask: Bool[Array | np.ndarray, " C"] | None
) -> Float[Array, "B C"]:
  """Row log-softmax in which masked columns take no probability."""
  if column_mask is not None:
    logits_BxB = jnp.where(column_mask[None, :], logits_BxB, _NO_PROBABILITY)
  return jax.nn.log_softmax(logits_BxB, axis=1)


def itc(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  temperature: float | Float[Array, ""] = 0.02,
  reduction: str = "mean",
  row_mask: Bool[Array | np.ndarray, " B"] | None = None,
  label_smoothing: float = 0.0,
) -> Float[Array, ""]:
  """Image-text contrastive loss (Eq. 1-2): cross-entropy on the diagonal, both directions.

    L_i2t = -1/B sum_i log softmax_j(cos(v_i, t_j) / tau)[i]
    L_t2i = -1/B sum_i log softmax_j(cos(t_i, v_j) / tau)[i]

  Args:
    image_features, text_features: unnormalised; row i of both is pair i.
    temperature: tau, divides the cosine similarities.
    reduction: how the image-to-text and text-to-image losses are combined: "mean" (released code)
      or "sum" (paper).
    row_mask: False for padded rows, which change neither the loss nor its gradients.
    label_smoothing: share of every target that is spread evenly over the real rows.

  Raises:
    ValueError: for an unknown reduction.
  """
  if reduction not in ITC_REDUCTIONS:
    raise ValueError(f"reduction must be one of {ITC_REDUCTIONS}, not {reduction!r}")
  i2t_BxB = cosine(image_features, text_features) / temperature

  def nll(logits_BxB):
    log_p_BxB = _log_softmax(logits_BxB, row_mask)
    own_B = -jnp.diagonal(log_p_BxB)
    if not label_smoothing:
      return own_B
    spread_B = -jax.vmap(masked_mean, (0, None))(log_p_BxB, row_mask)
    return (1 - label_smoothing) * own_B + label_smoothing * spread_B

  loss = masked_mean(nll(i2t_BxB), row_mask) + masked_mean(nll(i2t_BxB.T), row_mask)
  return loss / 2 if reduction == "mean" else loss


def similarity_distribution_matching(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  targets: Float[Array | np.ndarray, "B B"],
  temperature: float | Float[Array, ""] = 0.02,
  epsilon: float = 1e-6,
  row_mask: Bool[Array | np.ndarray, " B"] | None = None,
  loss_mask: Bool[Array | np.ndarray, " B"] | None = None,
) -> Float[Array, ""]:
  """Reverse KL divergence KL(p || q) of the softmax p of cosines from the targets q.

  Sections 3.2 to 3.4; for both directions, with v and t exchanged in the second:

    p_ij  = softmax_j(cos(v_i, t_j) / tau)
    L_i2t = 1/B sum_i sum_j p_ij (log p_ij - log(q_ij + epsilon))
    L     = L_i2t + L_t2i

  Slightly negative values are legal, because of epsilon.

  Args:
    image_features, text_features: unnormalised.
    targets: target distribution q of every row; a constant for the gradient.
    temperature: tau, divides the cosine similarities.
    epsilon: keeps log q finite where q is 0.
    row_mask: False for rows that do not exist (padding, empty neighbour slots). They take no
      probability in any row and enter no mean.
    loss_mask: the rows to average over, where these are fewer than the rows that exist.
  """
  i2t_BxB = cosine(image_features, text_features) / temperature
  log_q_BxB = jnp.log(jax.lax.stop_gradient(targets).astype(jnp.float32) + epsilon)
  if row_mask is not None:
    loss_mask = row_mask if loss_mask is None else row_mask & loss_mask

  def divergence(logits_BxB):
    log_p_BxB = _log_softmax(logits_BxB, row_mask)
    return masked_mean(jnp.sum(jnp.exp(log_p_BxB) * (log_p_BxB - log_q_BxB), axis=1), loss_mask)

  return divergence(i2t_BxB.T) + divergence(i2t_BxB)
