"""The two losses of the method, given features and target distributions. Pure functions.

The four terms of the training objective are these two functions on different inputs:

  L_itc          itc(v, t)
  L_local        similarity_distribution_matching(v, t, local targets of v, t)
  L_global       similarity_distribution_matching on the batch extended by mined bank rows
  L_consistency  similarity_distribution_matching(v', t', local targets of v', t'), distorted views
"""

import jax
import jax.numpy as jnp


def inverse_norm(features):
  """1 / L2 norm of every row, with no epsilon; 0 for rows of zeros. (..., D) -> (...) float32."""
  squared = jnp.sum(jnp.square(features.astype(jnp.float32)), axis=-1)
  # The inner `where` keeps the gradient of rows of zeros (unused slots) at 0 instead of NaN.
  return jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def normalize(features):
  """Every row divided by its L2 norm, in float32. (..., D) -> (..., D) float32."""
  return features.astype(jnp.float32) * inverse_norm(features)[..., None]


def cosine(a_NxD, b_MxD):
  """Cosine of every row of `a` with every row of `b`: (N, D), (M, D) -> (N, M) float32."""
  return jnp.dot(normalize(a_NxD), normalize(b_MxD).T, precision=jax.lax.Precision.HIGHEST)


def masked_mean(values_B, row_mask=None):
  """Mean over the rows whose mask is True (all rows when it is None): (B,), (B,) bool -> scalar."""
  if row_mask is None:
    return jnp.mean(values_B)
  return jnp.sum(jnp.where(row_mask, values_B, 0.0)) / jnp.maximum(jnp.sum(row_mask), 1)


def _log_softmax(logits_BxB, row_mask):
  """Row log-softmax in which masked columns take no probability (they get a large negative log)."""
  if row_mask is not None:
    # Finite, not -inf: p * log p and its gradient must stay 0 rather than become NaN.
    logits_BxB = jnp.where(row_mask[None, :], logits_BxB, jnp.finfo(jnp.float32).min / 2)
  return jax.nn.log_softmax(logits_BxB, axis=1)


def itc(
  image_features, text_features, temperature=0.02, reduction="mean", row_mask=None, spared=None
):
  """Image-text contrastive loss (paper Eq. 1-2): cross-entropy on the diagonal, both directions.

  Args:
    image_features, text_features: (B, D), unnormalised; row i of both is pair i.
    temperature: divides the cosine similarities.
    reduction: "mean" of the two directions (released code) or "sum" (paper).
    row_mask: (B,) bool, False for padded rows, which change neither the loss nor its gradients.
    spared: None, or (B, B) bool, symmetric: pairs that are taken to be one person and so are no
      negatives of each other (not in the paper). The diagonal does not matter.

  Returns:
    Scalar float32.

  Raises:
    ValueError: for an unknown reduction.
  """
  if reduction not in ("mean", "sum"):
    raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
  i2t_BxB = cosine(image_features, text_features) / temperature
  if spared is not None:
    spared &= ~jnp.eye(spared.shape[0], dtype=bool)
    i2t_BxB = jnp.where(spared, jnp.finfo(jnp.float32).min / 2, i2t_BxB)
  nll = lambda logits: -jnp.diagonal(_log_softmax(logits, row_mask))
  loss = masked_mean(nll(i2t_BxB), row_mask) + masked_mean(nll(i2t_BxB.T), row_mask)
  return loss / 2 if reduction == "mean" else loss


def similarity_distribution_matching(
  image_features,
  text_features,
  targets,
  temperature=0.02,
  epsilon=1e-6,
  row_mask=None,
  loss_mask=None,
):
  """Reverse KL divergence KL(p || q) of both retrieval directions (sections 3.2 to 3.4).

  p is the row softmax of cosine / temperature, q the target distribution of the row, and
  KL_i = sum_j p_ij (log p_ij - log(q_ij + epsilon)). Text-to-image and image-to-text are each
  averaged over rows, with the same q, and added. Slightly negative values are legal (epsilon).

  Args:
    image_features, text_features: (B, D), unnormalised.
    targets: (B, B) target distribution q; no gradient flows into it.
    temperature: divides the cosine similarities.
    epsilon: keeps log q finite where q is 0.
    row_mask: (B,) bool, False for rows that do not exist (padding, unused neighbour slots): they
      take no probability in any row and count in no mean.
    loss_mask: (B,) bool, the rows the mean runs over when that is fewer than the rows that exist.

  Returns:
    Scalar float32.
  """
  i2t_BxB = cosine(image_features, text_features) / temperature
  log_q_BxB = jnp.log(jax.lax.stop_gradient(targets).astype(jnp.float32) + epsilon)
  if row_mask is not None:
    loss_mask = row_mask if loss_mask is None else row_mask & loss_mask

  def divergence(logits_BxB):
    log_p_BxB = _log_softmax(logits_BxB, row_mask)
    return masked_mean(jnp.sum(jnp.exp(log_p_BxB) * (log_p_BxB - log_q_BxB), axis=1), loss_mask)

  return divergence(i2t_BxB.T) + divergence(i2t_BxB)
