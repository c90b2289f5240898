"""The transformer both towers share: attention, MLP and a scanned stack of pre-norm blocks.

The weights of a tower's blocks, except the last, are stacked along a leading axis of layers, and
`lax.scan` runs over that axis. Compile time and the number of arrays in a checkpoint thus do not
grow with depth. All towers but SigLIP's image tower read one token of their last block, so this
block computes keys and values for all tokens and everything else for that token alone: about 7 %
less arithmetic in 12 blocks. Its weights are kept apart, because slicing them out of the stack in
every step would cost half of that.
The letter F is local to this module: the width of one attention head.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgia_jax.models.backend import Backend
from dgia_jax.models.families import Family

# Index of one token in every sequence: one number for all of them, or one per sequence.
Position = int | Int[Array, " B"]
# A tower's parameters: those of its blocks but the last, stacked, and those of the last.
BLOCKS, LAST_BLOCK = "blocks", "last_block"


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """CLIP's activation: x * sigmoid(1.702 x), an approximation of GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  "quick_gelu": quick_gelu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def layer_norm(width: int, *, family: Family, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """Creates a LayerNorm with the epsilon of the family.

  Flax computes the statistics in float32 in one pass, with the variance as mean(x^2) - mean(x)^2.
  That is accurate here, because the tokens of a residual stream have means far smaller than their
  standard deviations.
  """
  return nnx.LayerNorm(width, epsilon=family.layer_norm_epsilon, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
  """Multi-head self-attention.

  Heads are an axis of the kernels, (U, 3, A, F) and (A, F, U), so that a sharding rule can split
  them by heads. Scores and softmax are float32 for every compute dtype.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    causal: bool,
    out_std: float,
    dtype: DTypeLike,
    backend: Backend,
    rngs: nnx.Rngs,
  ):
    head_width = width // heads
    self.causal = causal
    self.attend = {"written_out": _attend_written_out, "cudnn": _attend_cudnn}[backend.attention]
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

  def __call__(
    self, x_BxTxU: Float[Array | np.ndarray, "B T U"], num_tokens: int | None = None
  ) -> Float[Array, "B T U"]:
    """Mixes tokens; those from `num_tokens` on are padding, which no other token attends to."""
    # The gradient of a split is a concatenation; that of indexing is a sum of three padded arrays.
    q_BxTxAxF, k_BxTxAxF, v_BxTxAxF = (
      jnp.squeeze(part_BxTx1xAxF, 2) for part_BxTx1xAxF in jnp.split(self.qkv(x_BxTxU), 3, axis=2)
    )
    return self.out(
      self.attend(q_BxTxAxF, k_BxTxAxF, v_BxTxAxF, self.causal, num_tokens or x_BxTxU.shape[1])
    )

  def of_token(
    self,
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    position: Position,
    num_tokens: int | None = None,
  ) -> Float[Array, "B U"]:
    """The result for the token at `position` alone, from one query and all keys and values."""
    last = None
    if self.causal:
      last = position
    elif num_tokens is not None and num_tokens < x_BxTxU.shape[1]:
      last = num_tokens - 1
    return self.of_query(token_at(x_BxTxU, position), x_BxTxU, last)

  def of_query(
    self,
    x_BxU: Float[Array, "B U"],
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    last: Position | None = None,
  ) -> Float[Array, "B U"]:
    """What one token attends to among others.

    Args:
      x_BxU: the token.
      x_BxTxU: those whose keys and values it sees.
      last: position of the last one it sees; None means all.
    """
    dtype = x_BxTxU.dtype
    kernel_Ux3xAxF = self.qkv.kernel[...].astype(dtype)
    bias_3xAxF = self.qkv.bias[...].astype(dtype)
    q_BxAxF = jnp.einsum("bu,uaf->baf", x_BxU, kernel_Ux3xAxF[:, 0]) + bias_3xAxF[:1]
    kv_BxTx2xAxF = jnp.einsum("btu,upaf->btpaf", x_BxTxU, kernel_Ux3xAxF[:, 1:])
    k_BxTxAxF, v_BxTxAxF = (
      jnp.squeeze(part_BxTx1xAxF, 2)
      for part_BxTx1xAxF in jnp.split(kv_BxTx2xAxF + bias_3xAxF[None, None, 1:], 2, axis=2)
    )
    scores_BxAxT = jnp.einsum(
      "baf,btaf->bat",
      q_BxAxF * q_BxAxF.shape[-1] ** -0.5,
      k_BxTxAxF,
      preferred_element_type=jnp.float32,
    )
    if last is not None:
      is_visible = jnp.arange(x_BxTxU.shape[1])[None, None] <= jnp.reshape(last, (-1, 1, 1))
      scores_BxAxT = jnp.where(is_visible, scores_BxAxT, -jnp.inf)
    weights_BxAxT = jax.nn.softmax(scores_BxAxT, axis=-1).astype(dtype)
    return self.out(jnp.einsum("bat,btaf->baf", weights_BxAxT, v_BxTxAxF))


def token_at(x_BxTxU: Float[Array, "B T U"], position: Position) -> Float[Array, "B U"]:
  """One token of every sequence."""
  if isinstance(position, int):
    return x_BxTxU[:, position]
  return jnp.take_along_axis(x_BxTxU, position[:, None, None], axis=1)[:, 0]


def _attend_written_out(
  q_BxTxAxF: Float[Array, "B T A F"],
  k_BxTxAxF: Float[Array, "B T A F"],
  v_BxTxAxF: Float[Array, "B T A F"],
  causal: bool,
  num_tokens: int,
) -> Float[Array, "B T A F"]:
  """softmax(q k / sqrt(F)) v; on a CPU a fifth faster than jax.nn.dot_product_attention."""
  # With heads before tokens, both products run over contiguous matrices. Scaling q is cheaper than
  # scaling the scores.
  q_BxAxTxF, k_BxAxTxF, v_BxAxTxF = (
    jnp.swapaxes(part, 1, 2) for part in (q_BxTxAxF, k_BxTxAxF, v_BxTxAxF)
  )
  scores_BxAxTxT = jnp.einsum(
    "baqf,bakf->baqk",
    q_BxAxTxF * q_BxAxTxF.shape[-1] ** -0.5,
    k_BxAxTxF,
    preferred_element_type=jnp.float32,
  )
  length = q_BxTxAxF.shape[1]
  if causal:
    scores_BxAxTxT = jnp.where(jnp.tri(length, dtype=bool), scores_BxAxTxT, -jnp.inf)
  elif num_tokens < length:
    scores_BxAxTxT = jnp.where(jnp.arange(length) < num_tokens, scores_BxAxTxT, -jnp.inf)
  weights_BxAxTxT = jax.nn.softmax(scores_BxAxTxT, axis=-1).astype(v_BxAxTxF.dtype)
  return jnp.einsum("baqk,bakf->bqaf", weights_BxAxTxT, v_BxAxTxF)


def _attend_cudnn(
  q_BxTxAxF: Float[Array, "B T A F"],
  k_BxTxAxF: Float[Array, "B T A F"],
  v_BxTxAxF: Float[Array, "B T A F"],
  causal: bool,
  num_tokens: int,
) -> Float[Array, "B T A F"]:
  """The same with cuDNN's fused kernel; T must be even."""
  batch, length = q_BxTxAxF.shape[:2]
  # Causal attention hides padding, which comes last, without a mask of its own.
  needs_no_mask = causal or num_tokens == length
  return jax.nn.dot_product_attention(
    q_BxTxAxF,
    k_BxTxAxF,
    v_BxTxAxF,
    is_causal=causal,
    key_value_seq_lengths=None if needs_no_mask else jnp.full(batch, num_tokens, jnp.int32),
    implementation="cudnn",
  )


class Mlp(nnx.Module):
  """Two linear layers with the family's activation in between; an `inner` of 0 means 4 U."""

  def __init__(
    self,
    width: int,
    inner: int,
    *,
    family: Family,
    out_std: float,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    normal = nnx.initializers.normal
    inner = inner or 4 * width
    self.activation = family.activation
    self.up = nnx.Linear(
      width, inner, kernel_init=normal((2 * width) ** -0.5), dtype=dtype, rngs=rngs
    )
    self.down = nnx.Linear(inner, width, kernel_init=normal(out_std), dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array | np.ndarray, "*rows U"]) -> Float[Array, "*rows U"]:
    return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
  """One pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

  Weights are initialised as in CLIP, from normals scaled by the width. The two layers that write
  to the residual stream are also scaled by 1 / sqrt(2 depth), so that the variance of the stream
  does not grow with depth.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    mlp_width: int = 0,
    *,
    depth: int,
    causal: bool,
    family: Family,
    dtype: DTypeLike,
    backend: Backend,
    rngs: nnx.Rngs,
  ):
    out_std = width**-0.5 * (2 * depth) ** -0.5
    self.norm_1 = layer_norm(width, family=family, dtype=dtype, rngs=rngs)
    self.attention = Attention(
      width, heads, causal=causal, out_std=out_std, dtype=dtype, backend=backend, rngs=rngs
    )
    self.norm_2 = layer_norm(width, family=family, dtype=dtype, rngs=rngs)
    self.mlp = Mlp(width, mlp_width, family=family, out_std=out_std, dtype=dtype, rngs=rngs)

  def __call__(
    self, x_BxTxU: Float[Array | np.ndarray, "B T U"], num_tokens: int | None = None
  ) -> Float[Array, "B T U"]:
    """Applies the block; tokens from `num_tokens` on are padding."""
    x_BxTxU = x_BxTxU + self.attention(self.norm_1(x_BxTxU), num_tokens)
    return x_BxTxU + self.mlp(self.norm_2(x_BxTxU))

  def of_token(
    self,
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    position: Position,
    num_tokens: int | None = None,
  ) -> Float[Array, "B U"]:
    """The result for the token at `position` alone."""
    mixed_BxU = self.attention.of_token(self.norm_1(x_BxTxU), position, num_tokens)
    x_BxU = token_at(x_BxTxU, position) + mixed_BxU
    return x_BxU + self.mlp(self.norm_2(x_BxU))


class Blocks(NamedTuple):
  """The blocks of a tower."""

  stacked: Block  # all but the last as one, whose weights have a leading axis of Y - 1 layers
  last: Block


def create_blocks(create_block: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Blocks:
  """Creates `depth` blocks."""
  blocks = nnx.vmap(create_block)(rngs.fork(split=depth))
  return Blocks(
    stacked=jax.tree.map(lambda weights: weights[:-1], blocks),
    last=jax.tree.map(lambda weights: weights[-1], blocks),
  )


def run_blocks(
  blocks: Blocks,
  x_BxTxU: Float[Array | np.ndarray, "B T U"],
  backend: Backend,
  position: Position | None,
  num_frozen: int = 0,
) -> Float[Array, "B U"] | Float[Array, "B T U"]:
  """Applies blocks one after another; returns the token at `position`, or all tokens for None.

  The first `num_frozen` blocks have no backward pass, and neither has what comes before them.

  The backward pass keeps the results of the products with weights and recomputes the rest
  (attention scores, norms and activations), which costs more to write and read back than to
  compute. With `backend.remat` it keeps only the input of each block: about a third more
  arithmetic, and memory for the activations of one block instead of all.
  """
  num_tokens = x_BxTxU.shape[1]
  if backend.attention == "cudnn":  # needs an even number of tokens
    x_BxTxU = jnp.pad(x_BxTxU, ((0, 0), (0, num_tokens % 2), (0, 0)))
  set_layout = _row_major if backend.row_major else lambda x: x
  policies = jax.checkpoint_policies
  policy = policies.nothing_saveable if backend.remat else policies.dots_with_no_batch_dims_saveable
  recompute = functools.partial(
    jax.checkpoint,
    # In a loop the compiler cannot merge the recomputation with the forward pass, so no barrier is
    # needed. Unrolled, it may merge them where that is cheaper, except when memory is to be saved.
    prevent_cse=backend.unroll and backend.remat,
    policy=policy,
  )
  apply = recompute(lambda x_BxTxU, block: set_layout(block(x_BxTxU, num_tokens)))
  apply_last = recompute(lambda x_BxTxU, block: block.of_token(x_BxTxU, position, num_tokens))

  def apply_stacked(x_BxTxU: Float[Array | np.ndarray, "B T U"], stacked: Block) -> Array:
    step = lambda x_BxTxU, block: (apply(x_BxTxU, block), None)
    return jax.lax.scan(step, x_BxTxU, stacked, unroll=backend.unroll)[0]

  x_BxTxU, stacked = set_layout(x_BxTxU), blocks.stacked
  if num_frozen:
    frozen, stacked = (
      jax.tree.map(lambda weights, rows=rows: weights[rows], stacked)
      for rows in (slice(num_frozen), slice(num_frozen, None))
    )
    x_BxTxU = apply_stacked(*jax.lax.stop_gradient((x_BxTxU, frozen)))
  x_BxTxU = apply_stacked(x_BxTxU, stacked)
  if position is None:
    return apply(x_BxTxU, blocks.last)[:, :num_tokens]
  if backend.full_last_block:
    return token_at(apply(x_BxTxU, blocks.last), position)
  return apply_last(x_BxTxU, blocks.last)


def _row_major(x: Array) -> Array:
  """Makes the compiler store an array in the order of its axes."""
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
