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
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from dgia_jax.models.backend import Backend, matmul, precision_of
from dgia_jax.models.families import Family
from dgia_jax.models.row_major import row_major

# Indices of the tokens of every sequence that are read: one for all of them, or Q per sequence.
Positions = int | Int[Array | np.ndarray, "B Q"]
# The number of the text that each token belongs to, where a sequence holds several.
Segments = Int[Array | np.ndarray, "B T"] | None
_QKV = _QUERY, _KEY, _VALUE = range(3)  # places in the kernel of attention's first layer
# Products with weights, biases included, whose results the backward pass does not compute again.
_KEPT = "product"
_kept = functools.partial(checkpoint_name, name=_KEPT)
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
      precision=precision_of(dtype),
      rngs=rngs,
    )
    self.out = nnx.LinearGeneral(
      (heads, head_width),
      width,
      axis=(-2, -1),
      kernel_init=nnx.initializers.normal(out_std),
      dtype=dtype,
      precision=precision_of(dtype),
      rngs=rngs,
    )

  def __call__(
    self,
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    num_tokens: int | None = None,
    segments: Segments = None,
  ) -> Float[Array, "B T U"]:
    """Mixes tokens; those from `num_tokens` on are padding, which no other token attends to.

    With `segments`, tokens attend to tokens of their own segment only.
    """
    q_BxTxAxF, k_BxTxAxF, v_BxTxAxF = (self.project(x_BxTxU, part) for part in _QKV)
    mixed_BxTxAxF = self.attend(
      q_BxTxAxF, k_BxTxAxF, v_BxTxAxF, self.causal, num_tokens or x_BxTxU.shape[1], segments
    )
    return _kept(self.out(mixed_BxTxAxF))

  def project(
    self, x: Float[Array | np.ndarray, "*rows U"], part: int
  ) -> Float[Array, "*rows A F"]:
    """Queries, keys or values of tokens.

    One product for each, of matrices: the compiler adds the bias in the product, and the result is
    contiguous. One product for all three would have to be split, and its gradient concatenated.
    """
    kernel_Ux3xAxF = self.qkv.kernel[...].astype(x.dtype)
    bias_3xAxF = self.qkv.bias[...].astype(x.dtype)
    heads = kernel_Ux3xAxF.shape[2:]
    bias = bias_3xAxF[part].reshape(*[1] * (x.ndim - 1), -1)
    kernel = kernel_Ux3xAxF[:, part].reshape(x.shape[-1], -1)
    return _kept(matmul(x, kernel) + bias).reshape(*x.shape[:-1], *heads)

  def of_tokens(
    self,
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    positions: Positions,
    num_tokens: int | None = None,
    segments: Segments = None,
  ) -> Float[Array, "B Q U"]:
    """The results for the tokens at `positions` alone: their queries, all keys and values."""
    place_1x1xT = jnp.arange(x_BxTxU.shape[1])[None, None]
    masks = []
    if self.causal:
      masks.append(place_1x1xT <= jnp.atleast_2d(positions)[..., None])
    elif num_tokens is not None and num_tokens < x_BxTxU.shape[1]:
      masks.append(place_1x1xT < num_tokens)
    if segments is not None:
      own_BxQx1 = tokens_at(jnp.asarray(segments)[..., None], positions)
      masks.append(segments[:, None] == own_BxQx1)
    visible_BxQxT = functools.reduce(jnp.logical_and, masks) if masks else None
    return self.of_queries(tokens_at(x_BxTxU, positions), x_BxTxU, visible_BxQxT)

  def of_queries(
    self,
    x_BxQxU: Float[Array, "B Q U"],
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    visible_BxQxT: Bool[Array, "_ _ T"] | None = None,
  ) -> Float[Array, "B Q U"]:
    """What some tokens attend to among others.

    Args:
      x_BxQxU: the tokens that attend.
      x_BxTxU: those whose keys and values they see.
      visible_BxQxT: which of these each one sees; None means all.
    """
    precision, q_BxQxAxF = precision_of(x_BxTxU.dtype), self.project(x_BxQxU, _QUERY)
    k_BxTxAxF, v_BxTxAxF = (self.project(x_BxTxU, part) for part in (_KEY, _VALUE))
    scores_BxAxQxT = jnp.einsum(
      "bqaf,btaf->baqt",
      q_BxQxAxF * q_BxQxAxF.shape[-1] ** -0.5,
      k_BxTxAxF,
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    if visible_BxQxT is not None:
      scores_BxAxQxT = jnp.where(visible_BxQxT[:, None], scores_BxAxQxT, -jnp.inf)
    weights_BxAxQxT = jax.nn.softmax(scores_BxAxQxT, axis=-1).astype(x_BxTxU.dtype)
    mixed_BxQxAxF = jnp.einsum("baqt,btaf->bqaf", weights_BxAxQxT, v_BxTxAxF, precision=precision)
    return self.out(mixed_BxQxAxF)


def tokens_at(x_BxTxU: Shaped[Array, "B T U"], positions: Positions) -> Shaped[Array, "B Q U"]:
  """Some tokens of every sequence."""
  if isinstance(positions, int):
    return x_BxTxU[:, positions : positions + 1]
  return jnp.take_along_axis(x_BxTxU, positions[:, :, None], axis=1)


def _attend_written_out(
  q_BxTxAxF: Float[Array, "B T A F"],
  k_BxTxAxF: Float[Array, "B T A F"],
  v_BxTxAxF: Float[Array, "B T A F"],
  causal: bool,
  num_tokens: int,
  segments: Segments,
) -> Float[Array, "B T A F"]:
  """softmax(q k / sqrt(F)) v; on a CPU a fifth faster than jax.nn.dot_product_attention."""
  precision = precision_of(q_BxTxAxF.dtype)
  # With heads before tokens, both products run over contiguous matrices. Scaling q is cheaper than
  # scaling the scores.
  q_BxAxTxF, k_BxAxTxF, v_BxAxTxF = (
    jnp.swapaxes(part, 1, 2) for part in (q_BxTxAxF, k_BxTxAxF, v_BxTxAxF)
  )
  scores_BxAxTxT = jnp.einsum(
    "baqf,bakf->baqk",
    q_BxAxTxF * q_BxAxTxF.shape[-1] ** -0.5,
    k_BxAxTxF,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  length = q_BxTxAxF.shape[1]
  if causal:
    scores_BxAxTxT = jnp.where(jnp.tri(length, dtype=bool), scores_BxAxTxT, -jnp.inf)
  elif num_tokens < length:
    scores_BxAxTxT = jnp.where(jnp.arange(length) < num_tokens, scores_BxAxTxT, -jnp.inf)
  if segments is not None:
    scores_BxAxTxT = jnp.where(_same_segment(segments), scores_BxAxTxT, -jnp.inf)
  weights_BxAxTxT = jax.nn.softmax(scores_BxAxTxT, axis=-1).astype(v_BxAxTxF.dtype)
  return jnp.einsum("baqk,bakf->bqaf", weights_BxAxTxT, v_BxAxTxF, precision=precision)


def _attend_cudnn(
  q_BxTxAxF: Float[Array, "B T A F"],
  k_BxTxAxF: Float[Array, "B T A F"],
  v_BxTxAxF: Float[Array, "B T A F"],
  causal: bool,
  num_tokens: int,
  segments: Segments,
) -> Float[Array, "B T A F"]:
  """The same with cuDNN's fused kernel; T must be even."""
  batch, length = q_BxTxAxF.shape[:2]
  # Causal attention hides padding, which comes last, without a mask of its own.
  needs_no_mask = causal or num_tokens == length
  return jax.nn.dot_product_attention(
    q_BxTxAxF,
    k_BxTxAxF,
    v_BxTxAxF,
    mask=None if segments is None else _same_segment(segments),
    is_causal=causal,
    key_value_seq_lengths=None if needs_no_mask else jnp.full(batch, num_tokens, jnp.int32),
    implementation="cudnn",
  )


def _same_segment(segments: Int[Array | np.ndarray, "B T"]) -> Bool[Array, "B 1 T T"]:
  """Which tokens belong to the same segment."""
  return jnp.asarray(segments[:, None, :, None] == segments[:, None, None, :])


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
    normal, up_std = nnx.initializers.normal, (2 * width) ** -0.5
    inner = inner or 4 * width
    self.activation = family.activation
    linear = functools.partial(nnx.Linear, dtype=dtype, precision=precision_of(dtype), rngs=rngs)
    self.up = linear(width, inner, kernel_init=normal(up_std))
    self.down = linear(inner, width, kernel_init=normal(out_std))

  def __call__(self, x: Float[Array | np.ndarray, "*rows U"]) -> Float[Array, "*rows U"]:
    return self.down(ACTIVATIONS[self.activation](_kept(self.up(x))))


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
    self,
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    num_tokens: int | None = None,
    segments: Segments = None,
  ) -> Float[Array, "B T U"]:
    """Applies the block; arguments as in `Attention`."""
    x_BxTxU = x_BxTxU + self.attention(self.norm_1(x_BxTxU), num_tokens, segments)
    return x_BxTxU + self.mlp(self.norm_2(x_BxTxU))

  def of_tokens(
    self,
    x_BxTxU: Float[Array | np.ndarray, "B T U"],
    positions: Positions,
    num_tokens: int | None = None,
    segments: Segments = None,
  ) -> Float[Array, "B Q U"]:
    """The results for the tokens at `positions` alone."""
    mixed_BxQxU = self.attention.of_tokens(self.norm_1(x_BxTxU), positions, num_tokens, segments)
    x_BxQxU = tokens_at(x_BxTxU, positions) + mixed_BxQxU
    return x_BxQxU + self.mlp(self.norm_2(x_BxQxU))


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
  positions: Positions | None,
  num_frozen: int = 0,
  segments: Segments = None,
) -> Float[Array, "B Q U"] | Float[Array, "B T U"]:
  """Applies blocks one after another; returns the tokens at `positions`, or all tokens for None.

  Where a sequence has `segments`, tokens attend to tokens of their own segment only. The first
  `num_frozen` blocks have no backward pass, and neither has what comes before them.

  The backward pass keeps the results of the products with weights and recomputes the rest
  (attention scores, norms and activations), which costs more to write and read back than to
  compute. With `backend.remat` it keeps only the input of each block: about a third more
  arithmetic, and memory for the activations of one block instead of all.
  """
  num_tokens = x_BxTxU.shape[1]
  if backend.attention == "cudnn":  # needs an even number of tokens
    assert segments is None or num_tokens % 2 == 0
    x_BxTxU = jnp.pad(x_BxTxU, ((0, 0), (0, num_tokens % 2), (0, 0)))
  set_layout = row_major if backend.row_major else lambda x: x
  policies = jax.checkpoint_policies
  policy = policies.nothing_saveable if backend.remat else policies.save_only_these_names(_KEPT)
  recompute = functools.partial(
    jax.checkpoint,
    # In a loop the compiler cannot merge the recomputation with the forward pass, so no barrier is
    # needed. Unrolled, it may merge them where that is cheaper, except when memory is to be saved.
    prevent_cse=backend.unroll and backend.remat,
    policy=policy,
  )
  apply = recompute(lambda x_BxTxU, block: set_layout(block(x_BxTxU, num_tokens, segments)))
  apply_last = recompute(
    lambda x_BxTxU, block: block.of_tokens(x_BxTxU, positions, num_tokens, segments)
  )

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
  if positions is None:
    return apply(x_BxTxU, blocks.last)[:, :num_tokens]
  if backend.full_last_block:
    return tokens_at(apply(x_BxTxU, blocks.last), positions)
  return apply_last(x_BxTxU, blocks.last)
