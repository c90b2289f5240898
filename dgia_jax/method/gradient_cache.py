"""The gradient of a loss over the whole batch, at the memory of a part of the batch.

The method's losses compare every pair with every other, so they cannot be summed over parts of the
batch: a part would be associated with itself alone. But they see a pair through its features only,
and features are small. With A > 1 parts the chain rule is therefore taken in three strides:

  1. all parts are encoded one after another; of each only the features are kept;
  2. the loss of the whole batch's features, and its gradient with respect to them;
  3. each part is encoded again and its features' gradient pulled back to the parameters; the
     parts' gradients are summed in float32.

Nothing is approximated: loss, relations and gradient are those of one large batch. The price is one
more forward pass. (Gao et al. 2021, arXiv 2101.06983, do so for the contrastive loss.)

Letters: B pairs of the global batch, A parts, b = B / A pairs of one part.
"""

import jax
import jax.numpy as jnp

from dgia_jax import sharding


def split(tree, parts, mesh):
  """Cuts a batch into parts: every array (B, ...) becomes (A, b, ...).

  Part a holds the rows a, a + A, a + 2A, ...: an equal share of every device's rows, so that all
  devices work on every part and no row changes its device.

  Args:
    tree: arrays whose first dimension is the global batch, split over the mesh.
    parts: A; divides the rows of each device.
    mesh: the mesh.

  Returns:
    The same tree of arrays (A, b, ...).
  """
  cut = lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
  return jax.lax.with_sharding_constraint(jax.tree.map(cut, tree), sharding.batch_parts(mesh))


def join(tree, mesh):
  """The inverse of `split`: arrays (A, b, ...) become (B, ...)."""
  glue = lambda x: x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
  return jax.lax.with_sharding_constraint(jax.tree.map(glue, tree), sharding.batch(mesh))


def of_features_loss(loss, encode, params, batch, *, parts, mesh):
  """Gradient of `loss(encode(params, batch))` with respect to the parameters.

  Args:
    loss: features of the whole batch -> (scalar, anything else).
    encode: (params, batch) -> features, row by row: a tree of arrays (B, ...).
    params: tree of float32 arrays.
    batch: tree of arrays (B, ...), split over the mesh.
    parts: A; 1 keeps the activations of the whole batch, A > 1 those of b = B / A pairs.
    mesh: the mesh.

  Returns:
    The gradient, a tree like `params`, and what else `loss` returned.
  """
  if parts == 1:
    return jax.grad(lambda params: loss(encode(params, batch)), has_aux=True)(params)
  batch_AxbX = split(batch, parts, mesh)
  features_AxbX = jax.lax.map(lambda part: encode(params, part), batch_AxbX)
  feature_gradient, rest = jax.grad(loss, has_aux=True)(join(features_AxbX, mesh))

  def add_part(total, part_and_gradient):
    part, feature_gradient = part_and_gradient
    _, pull_back = jax.vjp(lambda params: encode(params, part), params)
    (gradient,) = pull_back(feature_gradient)
    return jax.tree.map(jnp.add, total, gradient), None

  start = jax.tree.map(jnp.zeros_like, params)
  parts_with_gradients = (batch_AxbX, split(feature_gradient, parts, mesh))
  gradient, _ = jax.lax.scan(add_part, start, parts_with_gradients)
  return gradient, rest
