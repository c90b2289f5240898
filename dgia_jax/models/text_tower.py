"""CLIP's text transformer: token ids to one feature, read at the end-of-text token.

Letters: B texts, L tokens, C width of the tower, D width of the feature.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dgia_jax.models import transformer
from dgia_jax.models.backend import Execution


class TextTower(nnx.Module):
  """Causal pre-norm blocks over token embeddings; the end token's output becomes the feature.

  The end token must be the highest id of a sequence: the feature is read at the first maximum.
  Attention is causal, so what follows the end token cannot change the feature, and a batch may be
  cut to any shorter length that still holds every end token.

  Args:
    width, depth, heads: of the transformer.
    feature_width: D.
    vocab_size: number of token ids.
    context_length: the longest sequence, in tokens.
    dtype: of the computation; weights are float32.
    execution: how blocks are computed.
    rngs: draws the starting weights.
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
    dtype: jnp.dtype,
    execution: Execution,
    rngs: nnx.Rngs,
  ):
    normal = nnx.initializers.normal

    def param(init, *shape: int) -> nnx.Param:
      return nnx.Param(init(rngs.params(), shape, jnp.float32))

    self.dtype = dtype
    self.execution = execution
    self.token_embedding = param(normal(0.02), vocab_size, width)
    self.position_embedding = param(normal(0.01), context_length, width)
    self.blocks = transformer.stack_blocks(
      lambda rngs: transformer.Block(
        width, heads, depth=depth, causal=True, dtype=dtype, execution=execution, rngs=rngs
      ),
      depth,
      rngs,
    )
    self.norm_final = transformer.layer_norm(width, dtype=jnp.float32, rngs=rngs)
    self.projection = param(normal(width**-0.5), width, feature_width)

  def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
    """Token ids, int32 (B, L <= context length), to float32 features (B, D), not normalised."""
    length = tokens_BxL.shape[1]
    # Rows are picked before the cast, so their gradients add up in float32.
    x_BxLxC = self.token_embedding[...][tokens_BxL].astype(self.dtype)
    x_BxLxC = x_BxLxC + self.position_embedding[...][None, :length].astype(self.dtype)
    x_BxLxC = transformer.run_blocks(self.blocks, x_BxLxC, self.execution)
    end_Bx1x1 = jnp.argmax(tokens_BxL, axis=-1)[:, None, None]
    pooled_BxC = jnp.take_along_axis(x_BxLxC, end_Bx1x1, axis=1)[:, 0]
    return self.norm_final(pooled_BxC) @ self.projection[...]
