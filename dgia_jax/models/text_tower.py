"""The text transformer of CLIP, read at the end-of-text token, and SigLIP's, read at the last."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgia_jax.models import transformer
from dgia_jax.models.backend import Backend
from dgia_jax.models.families import Family


class TextTower(nnx.Module):
  """Runs pre-norm blocks over token embeddings; one token's output is the feature.

  CLIP: the end token must have the highest id of its sequence, because the feature is read at the
  first maximum. Attention is causal, so tokens after the end token cannot change the feature, and
  callers may cut a batch to any shorter length that still holds every end token.
  SigLIP: the feature is read at the last position, and all tokens attend to each other, padding
  included. Texts must have the whole context length.

  Args:
    width: U.
    depth: number of blocks.
    heads: attention heads.
    mlp_width: inner width of the MLPs; 0 means 4 U.
    family: of the model.
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
    mlp_width: int,
    family: Family,
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
    self.family = family
    self.token_embedding = param(normal(0.02), vocab_size, width)
    self.position_embedding = param(normal(0.01), context_length, width)
    self.blocks, self.last_block = transformer.create_blocks(
      lambda rngs: transformer.Block(
        width,
        heads,
        mlp_width,
        depth=depth,
        causal=not family.is_siglip,
        family=family,
        dtype=dtype,
        backend=backend,
        rngs=rngs,
      ),  # fmt: skip
      depth,
      rngs,
    )
    self.norm_final = transformer.layer_norm(width, family=family, dtype=jnp.float32, rngs=rngs)
    self.projection = param(normal(width**-0.5), width, feature_width)
    if family.is_siglip:
      self.projection_bias = param(nnx.initializers.zeros, feature_width)

  def __call__(self, tokens_BxL: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B D"]:
    """Encodes token ids; the features are float32 and not normalised."""
    length = tokens_BxL.shape[1]
    if self.family.is_siglip and length != self.position_embedding.shape[0]:
      raise ValueError(f"SigLIP reads {self.position_embedding.shape[0]} tokens, not {length}")
    # Indexing before the cast sums the gradients of repeated tokens in float32.
    x_BxLxU = self.token_embedding[...][tokens_BxL].astype(self.dtype)
    x_BxLxU = x_BxLxU + self.position_embedding[...][None, :length].astype(self.dtype)
    blocks = transformer.Blocks(self.blocks, self.last_block)
    position = length - 1 if self.family.is_siglip else jnp.argmax(tokens_BxL, axis=-1)
    num_frozen = self.backend.frozen_text_blocks
    token_BxU = transformer.run_blocks(blocks, x_BxLxU, self.backend, position, num_frozen)
    feature_BxD = self.norm_final(token_BxU) @ self.projection[...]
    return feature_BxD + self.projection_bias[...][None] if self.family.is_siglip else feature_BxD
