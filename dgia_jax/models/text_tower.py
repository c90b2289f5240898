"""CLIP's text transformer, read at the end-of-text token."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgia_jax.models import transformer
from dgia_jax.models.backend import Backend


class TextTower(nnx.Module):
  """Runs causal pre-norm blocks over token embeddings; the end token's output is the feature.

  The end token must have the highest id of its sequence: the feature is read at the first maximum.
  Attention is causal, so tokens after the end token cannot change the feature, and callers may cut
  a batch to any shorter length that still holds every end token.

  Args:
    width: U.
    depth: number of blocks.
    heads: attention heads.
    feature_width: D.
    vocab_size: number of token ids.
    context_length: longest sequence in tokens.
    dtype: of the computation; weights are float32.
    backend: how the blocks are computed.
    rngs: draws the initial weights.
  """

  def __init__(
    self,
    *,
    width: int,
    depth: int,
    heads: int,
    feature_width: int,
    vocab_size: int,
    context_length: int,
    dtype: DTypeLike,
    backend: Backend,
    rngs: nnx.Rngs,
  ):
    normal = nnx.initializers.normal

    def param(init: nnx.Initializer, *shape: int) -> nnx.Param:
      return nnx.Param(init(rngs.params(), shape, jnp.float32))

    self.dtype = dtype
    self.backend = backend
    self.token_embedding = param(normal(0.02), vocab_size, width)
    self.position_embedding = param(normal(0.01), context_length, width)
    self.blocks, self.last_block = transformer.create_blocks(
      lambda rngs: transformer.Block(
        width, heads, depth=depth, causal=True, dtype=dtype, backend=backend, rngs=rngs
      ),
      depth,
      rngs,
    )
    self.norm_final = transformer.layer_norm(width, dtype=jnp.float32, rngs=rngs)
    self.projection = param(normal(width**-0.5), width, feature_width)

  def __call__(self, tokens_BxL: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B D"]:
    """Encodes token ids; the features are float32 and not normalised."""
    length = tokens_BxL.shape[1]
    # Indexing before the cast sums the gradients of repeated tokens in float32.
    x_BxLxU = self.token_embedding[...][tokens_BxL].astype(self.dtype)
    x_BxLxU = x_BxLxU + self.position_embedding[...][None, :length].astype(self.dtype)
    blocks = transformer.Blocks(self.blocks, self.last_block)
    end_B = jnp.argmax(tokens_BxL, axis=-1)
    end_token_BxU = transformer.run_blocks(blocks, x_BxLxU, self.backend, position=end_B)
    return self.norm_final(end_token_BxU) @ self.projection[...]
