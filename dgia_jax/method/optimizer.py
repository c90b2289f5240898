"""The recipe as one optax chain: Adam with a large epsilon, coupled decay, faster biases.

The released code trains float16 weights with eps 1e-3, adds weight decay to the gradient, gives
biases twice the learning rate and no decay, and sets the learning rate once an epoch. Training
from scratch prefers decoupled decay and a rate set every step; both are the same chain.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dgia_jax.sharding import path_name

SECOND_MOMENTS = ("float32", "float16")
SCALING_RULES = ("linear", "sqrt")


def learning_rate(epoch, num_epochs, base=1e-5, warmup_epochs=5, warmup_factor=0.1):
  """Linear warm-up from a tenth of the base rate, then cosine to 0 at `num_epochs`.

  Args:
    epoch: counted from 0; fractions are allowed; may be traced.
    num_epochs: length of the run.
    base: rate at the end of the warm-up.
    warmup_epochs: length of the warm-up; 0 for none.
    warmup_factor: share of the base rate at epoch 0.

  Returns:
    Scalar float32.
  """
  epoch = jnp.asarray(epoch, jnp.float32)
  done = epoch / max(warmup_epochs, 1e-9)
  warm = warmup_factor * (1 - done) + done
  progress = (epoch - warmup_epochs) / max(num_epochs - warmup_epochs, 1e-9)
  cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
  return base * jnp.where(epoch < warmup_epochs, warm, cosine)


def scaled_learning_rate(base, batch_size, reference_batch=64, rule="linear"):
  """The base rate for another batch size.

  "linear" is the rule of SGD: a batch m times larger makes m times fewer steps, each m times
  longer. It fits Adam while its epsilon outweighs the gradient, |g| << eps, because the update is
  then the mean gradient / eps; the released eps of 1e-3 is large. "sqrt" is the usual rule of
  Adam with a small epsilon, whose update does not shrink with the gradient. |g| is about
  gradient_norm / sqrt(number of parameters): with the 149.6 M of vit_b_16 and eps 1e-3 the linear
  rule asks for a logged `gradient_norm` well below 12.

  Args:
    base: rate that is right for `reference_batch`.
    batch_size: pairs in the global batch.
    reference_batch: pairs in the batch that `base` was chosen for.
    rule: "linear": base m, or "sqrt": base sqrt(m), with m = batch_size / reference_batch.

  Returns:
    The rate, a float.

  Raises:
    ValueError: for an unknown rule.
  """
  if rule not in SCALING_RULES:
    raise ValueError(f"rule must be one of {SCALING_RULES}, not {rule!r}")
  ratio = batch_size / reference_batch
  return base * (ratio if rule == "linear" else math.sqrt(ratio))


def is_bias(tree):
  """Which leaves are biases, by name: a tree of bool."""
  return jax.tree_util.tree_map_with_path(lambda path, _: "bias" in path_name(path), tree)


class AdamState(NamedTuple):
  """Adam's averages; `count` is the number of updates made."""

  count: jax.Array
  mu: optax.Params
  nu: optax.Params


def _scale_by_adam_half(b1, b2, eps):
  """Adam whose second moment is kept in float16, as the released code keeps it.

  Squares of gradients below about 5e-3 then vanish, and such a weight moves by its corrected
  first moment / eps: momentum SGD in effect. optax offers a narrow first moment only.
  """

  def init(params):
    return AdamState(
      count=jnp.zeros((), jnp.int32),
      mu=optax.tree.zeros_like(params),
      nu=optax.tree.zeros_like(params, dtype=jnp.float16),
    )

  def update(gradients, state, params=None):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, gradients, state.mu)

    def half_square(g, v):
      # Both terms are rounded to float16 before they are added, and so is their sum. What vanishes
      # is the new term, (1 - b2) g^2. The products before the rounding, and all else, are float32.
      kept = (v.astype(jnp.float32) * b2).astype(jnp.float16)
      fresh = (jnp.square(g.astype(jnp.float32)) * (1 - b2)).astype(jnp.float16)
      return kept + fresh

    nu = jax.tree.map(half_square, gradients, state.nu)

    def direction(m, v):
      v_hat = v.astype(jnp.float32) / (1 - b2**count)
      return (m / (1 - b1**count)) / (jnp.sqrt(v_hat) + eps)

    return jax.tree.map(direction, mu, nu), AdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def create(
  *,
  num_epochs,
  steps_per_epoch,
  base=1e-5,
  warmup_epochs=5,
  lr_update="epoch",
  betas=(0.9, 0.999),
  epsilon=1e-3,
  weight_decay=4e-5,
  decoupled=False,
  bias_lr_multiplier=2.0,
  second_moment="float32",
):
  """The optimiser as an optax chain.

  Args:
    num_epochs, steps_per_epoch: length of the run.
    base: learning rate after the warm-up.
    warmup_epochs: epochs of linear warm-up.
    lr_update: "epoch" sets the rate once an epoch (released code), "step" every step.
    betas: decay of Adam's two averages.
    epsilon: added to the root of the second moment, after bias correction.
    weight_decay: on everything but biases.
    decoupled: False adds the decay to the gradient (L2, released code), True to the update (AdamW).
    bias_lr_multiplier: biases learn this many times faster.
    second_moment: "float32", or "float16" to emulate the released code's precision.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    ValueError: for an unknown `lr_update` or `second_moment`.
  """
  if lr_update not in ("epoch", "step"):
    raise ValueError(f"lr_update must be 'epoch' or 'step', not {lr_update!r}")
  if second_moment not in SECOND_MOMENTS:
    raise ValueError(f"second_moment must be one of {SECOND_MOMENTS}, not {second_moment!r}")

  def schedule(count):
    epoch = count // steps_per_epoch if lr_update == "epoch" else count / steps_per_epoch
    return learning_rate(epoch, num_epochs, base, warmup_epochs)

  decay = optax.add_decayed_weights(
    weight_decay, mask=lambda params: jax.tree.map(lambda bias: not bias, is_bias(params))
  )
  adam = optax.scale_by_adam(*betas, eps=epsilon)
  if second_moment == "float16":
    adam = _scale_by_adam_half(*betas, eps=epsilon)
  return optax.chain(
    *((adam, decay) if decoupled else (decay, adam)),
    optax.scale_by_learning_rate(schedule),
    optax.masked(optax.scale(bias_lr_multiplier), is_bias),
  )
