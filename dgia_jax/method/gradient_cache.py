"""The gradient of a loss over the whole batch, in the memory of a part of it (GradCache).

The method's losses compare every pair with every other, so they are not sums over parts of a batch:
a part would be associated only with itself. But they see a pair only through its features, and
features are small. With P > 1 parts the chain rule is therefore applied in three stages:

1. encode all parts, one after another, and keep only their features;
2. compute the loss of the whole batch's features and its gradient with respect to them (and to
   the parameters that the loss itself reads);
3. encode each part again and pull its features' gradient back to the parameters; the parts'
   gradients are summed in float32.

Nothing is approximated: loss, relations and gradient are those of the large batch. The price is one
more forward pass. The technique is that of Gao et al. 2021 (arXiv 2101.06983).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dgia_jax import sharding


def split(tree: Any, parts: int, mesh: jax.sharding.Mesh) -> Any:
  """Cuts a batch into parts: every array (B, ...) becomes (P, B / P, ...).

  Part p holds the rows p, p + P, p + 2P, ...: an equal share of every device's rows, so that all
  devices work on every part and no row changes its device.

  Args:
    tree: arrays whose first dimension is the global batch, split over the mesh.
    parts: P; divides the rows of each device.
    mesh: the devices that the batch is split over.

  Raises:
    ValueError: P does not divide the batch.
  """
  for size in {x.shape[0] for x in jax.tree.leaves(tree)}:
    if size % parts:
      raise ValueError(f"a batch of {size} rows does not divide into {parts} equal parts")
  cut = lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
  return jax.lax.with_sharding_constraint(jax.tree.map(cut, tree), sharding.batch_parts(mesh))


def join(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """The inverse of `split`: arrays (P, B / P, ...) become (B, ...)."""
  merge = lambda x: x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
  return jax.lax.with_sharding_constraint(jax.tree.map(merge, tree), sharding.batch(mesh))


def gradient_of(
  loss: Callable[[Any, Any], tuple[jax.Array, Any]],
  encode: Callable[[Any, Any], Any],
  params: Any,
  batch: Any,
  *,
  parts: int,
  mesh: jax.sharding.Mesh,
) -> tuple[Any, Any]:
  """Gradient of `loss(encode(params, batch), params)` with respect to the parameters.

  Args:
    loss: (features of the whole batch, params) -> (scalar, auxiliary results).
    encode: (params, batch) -> features, row by row: a tree of arrays (B, ...).
    params: tree of float32 arrays.
    batch: tree of arrays (B, ...), split over the mesh.
    parts: P; activations of B / P pairs are in memory at a time.
    mesh: the devices that the batch is split over.

  Returns:
    The gradient, a tree like `params`, and the auxiliary results.

  Raises:
    ValueError: P does not divide the batch.
  """
  if parts == 1:
    return jax.grad(lambda params: loss(encode(params, batch), params), has_aux=True)(params)
  batch_PxbX = split(batch, parts, mesh)
  features_PxbX = jax.lax.map(lambda part: encode(params, part), batch_PxbX)
  (feature_gradient, direct_gradient), auxiliary = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    join(features_PxbX, mesh), params
  )

  def add_part(total, part_and_gradient):
    part, feature_gradient = part_and_gradient
    _, pull_back = jax.vjp(lambda params: encode(params, part), params)
    (gradient,) = pull_back(feature_gradient)
    return jax.tree.map(jnp.add, total, gradient), None

  parts_with_gradients = (batch_PxbX, split(feature_gradient, parts, mesh))
  gradient, _ = jax.lax.scan(add_part, direct_gradient, parts_with_gradients)
  return gradient, auxiliary
