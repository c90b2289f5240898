"""The transformer both towers share: attention, MLP and the scanned stack of pre-norm blocks.

The weights of all blocks of a tower are stacked along a leading layer axis and `lax.scan` runs
over them, so compile time and the number of arrays in a checkpoint do not grow with depth.
Letters here: S tokens of a sequence, C width of the tower, A attention heads, E width of a head.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from dgia_jax.models.backend import Execution

# CLIP's value; flax's default (1e-6) gives other features.
LAYER_NORM_EPSILON = 1e-5


def quick_gelu(x: jax.Array) -> jax.Array:
  """CLIP's activation, x * sigmoid(1.702 x), an approximation of GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


def layer_norm(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """A LayerNorm over `width` features with CLIP's epsilon.

  Statistics are taken in float32 in one pass, as mean(x^2) - mean(x)^2: tokens of a residual
  stream have means far smaller than their deviations, so nothing is lost by the subtraction.
  """
  return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
  """Multi-head self-attention.

  Kernels keep heads as an axis of their own, (C, 3, A, E) and (A, E, C), so that a sharding rule
  can split them by heads. Scores and softmax are float32 whatever the compute dtype.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    causal: bool,
    out_std: float,
    dtype: jnp.dtype,
    execution: Execution,
    rngs: nnx.Rngs,
  ):
    head_width = width // heads
    self.causal = causal
    self.mix = {"written_out": _mix_written_out, "cudnn": _mix_cudnn}[execution.attention]
    self.qkv = nnx.LinearGeneral(
      width,
      (3, heads, head_width),
      kernel_init=nnx.initializers.normal(width**-0.5),
      dtype=dtype,
      rngs=rngs,
    )
    self.out = nnx.LinearGeneral(
      (heads, head_width),
      width,
      axis=(-2, -1),
      kernel_init=nnx.initializers.normal(out_std),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x_BxSxC: jax.Array, num_tokens: int | None = None) -> jax.Array:
    """Tokens (B, S, C) to tokens (B, S, C); those from `num_tokens` on are seen by no other."""
    # Splitting rather than indexing lets the backward pass join three gradients instead of adding.
    q_BxSxAxE, k_BxSxAxE, v_BxSxAxE = (
      jnp.squeeze(part_BxSx1xAxE, 2) for part_BxSx1xAxE in jnp.split(self.qkv(x_BxSxC), 3, axis=2)
    )
    return self.out(
      self.mix(q_BxSxAxE, k_BxSxAxE, v_BxSxAxE, self.causal, num_tokens or x_BxSxC.shape[1])
    )


def _mix_written_out(
  q_BxSxAxE: jax.Array, k_BxSxAxE: jax.Array, v_BxSxAxE: jax.Array, causal: bool, num_tokens: int
) -> jax.Array:
  """softmax(q k / sqrt(E)) v. On a CPU a fifth faster than jax.nn.dot_product_attention."""
  # Heads stand before tokens, so that both products run over whole matrices where they lie; the
  # scale goes onto q, which is smaller than the scores.
  q_BxAxSxE, k_BxAxSxE, v_BxAxSxE = (
    jnp.swapaxes(part, 1, 2) for part in (q_BxSxAxE, k_BxSxAxE, v_BxSxAxE)
  )
  scores_BxAxSxS = jnp.einsum(
    "base,bate->bast",
    q_BxAxSxE * q_BxAxSxE.shape[-1] ** -0.5,
    k_BxAxSxE,
    preferred_element_type=jnp.float32,
  )
  size = q_BxSxAxE.shape[1]
  if causal:
    scores_BxAxSxS = jnp.where(jnp.tri(size, dtype=bool), scores_BxAxSxS, -jnp.inf)
  elif num_tokens < size:
    scores_BxAxSxS = jnp.where(jnp.arange(size) < num_tokens, scores_BxAxSxS, -jnp.inf)
  shares_BxAxSxS = jax.nn.softmax(scores_BxAxSxS, axis=-1).astype(v_BxAxSxE.dtype)
  return jnp.einsum("bast,bate->bsae", shares_BxAxSxS, v_BxAxSxE)


def _mix_cudnn(
  q_BxSxAxE: jax.Array, k_BxSxAxE: jax.Array, v_BxSxAxE: jax.Array, causal: bool, num_tokens: int
) -> jax.Array:
  """The same, by the fused kernel of cuDNN; S must be even."""
  size, length = q_BxSxAxE.shape[:2]
  # What follows a token is hidden from it anyway where attention is causal.
  whole = causal or num_tokens == length
  return jax.nn.dot_product_attention(
    q_BxSxAxE,
    k_BxSxAxE,
    v_BxSxAxE,
    is_causal=causal,
    key_value_seq_lengths=None if whole else jnp.full(size, num_tokens, jnp.int32),
    implementation="cudnn",
  )


class Mlp(nnx.Module):
  """Two linear layers with QuickGELU between them; the inner width is 4 C."""

  def __init__(self, width: int, *, out_std: float, dtype: jnp.dtype, rngs: nnx.Rngs):
    normal = nnx.initializers.normal
    self.up = nnx.Linear(
      width, 4 * width, kernel_init=normal((2 * width) ** -0.5), dtype=dtype, rngs=rngs
    )
    self.down = nnx.Linear(4 * width, width, kernel_init=normal(out_std), dtype=dtype, rngs=rngs)

  def __call__(self, x_BxSxC: jax.Array) -> jax.Array:
    return self.down(quick_gelu(self.up(x_BxSxC)))


class Block(nnx.Module):
  """One pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

  Weights start as in CLIP: normals scaled by the width, the two layers that write into the
  residual stream also by 1 / sqrt(2 depth), so the stream's variance does not grow with depth.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    depth: int,
    causal: bool,
    dtype: jnp.dtype,
    execution: Execution,
    rngs: nnx.Rngs,
  ):
    out_std = width**-0.5 * (2 * depth) ** -0.5
    self.norm_1 = layer_norm(width, dtype=dtype, rngs=rngs)
    self.attention = Attention(
      width, heads, causal=causal, out_std=out_std, dtype=dtype, execution=execution, rngs=rngs
    )
    self.norm_2 = layer_norm(width, dtype=dtype, rngs=rngs)
    self.mlp = Mlp(width, out_std=out_std, dtype=dtype, rngs=rngs)

  def __call__(self, x_BxSxC: jax.Array, num_tokens: int | None = None) -> jax.Array:
    """Tokens (B, S, C) to tokens (B, S, C), of which those from `num_tokens` on are padding."""
    x_BxSxC = x_BxSxC + self.attention(self.norm_1(x_BxSxC), num_tokens)
    return x_BxSxC + self.mlp(self.norm_2(x_BxSxC))


def stack_blocks(make_block: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Block:
  """Makes `depth` blocks at once; every weight gets a leading axis of that length."""
  return nnx.vmap(make_block)(rngs.fork(split=depth))


def run_blocks(blocks: Block, x_BxSxC: jax.Array, execution: Execution) -> jax.Array:
  """Applies stacked blocks one after another.

  The backward pass keeps the results of matrix products by weights and computes the rest again:
  attention's scores, norms and activations, which cost more to write and read back than to
  compute. With `execution.remat` it keeps blocks' inputs alone: about a third more arithmetic, and
  memory for one block instead of all.
  """
  num_tokens = x_BxSxC.shape[1]
  if execution.attention == "cudnn":  # wants an even number of tokens
    x_BxSxC = jnp.pad(x_BxSxC, ((0, 0), (0, num_tokens % 2), (0, 0)))
  lay = _row_major if execution.row_major else lambda x: x

  def apply(x_BxSxC: jax.Array, block: Block) -> jax.Array:
    return lay(block(x_BxSxC, num_tokens))

  policies = jax.checkpoint_policies
  apply = jax.checkpoint(
    apply,
    # In a loop the compiler cannot merge the two computations, so no barrier is needed. Unrolled,
    # it may merge them where that is cheaper, unless memory is to be saved.
    prevent_cse=execution.unroll and execution.remat,
    policy=policies.nothing_saveable
    if execution.remat
    else policies.dots_with_no_batch_dims_saveable,
  )
  x_BxSxC, _ = jax.lax.scan(
    lambda x, block: (apply(x, block), None), lay(x_BxSxC), blocks, unroll=execution.unroll
  )
  return x_BxSxC[:, :num_tokens]


def _row_major(x: jax.Array) -> jax.Array:
  """Asks the compiler to keep an array in memory as it is indexed."""
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
