"""The text transformer of CLIP, read at the end-of-text token, and SigLIP's, read at the last."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgia_jax.models import transformer
from dgia_jax.models.backend import Backend, matmul
from dgia_jax.models.caption_packing import Rows
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
    read = length - 1 if self.family.is_siglip else jnp.argmax(tokens_BxL, axis=-1)[:, None]
    return self._encode(tokens_BxL, self.position_embedding[...][None, :length], read)[:, 0]

  def encode_rows(self, rows: Rows) -> Float[Array, "P Q D"]:
    """Encodes packed captions of CLIP, see `caption_packing`."""
    position_PxTxU = self.position_embedding[...][rows.position_PxT]
    return self._encode(rows.tokens_PxT, position_PxTxU, rows.end_PxQ, rows.caption_PxT)

  def _encode(
    self,
    tokens_BxT: Int[Array | np.ndarray, "B T"],
    position_BxTxU: Float[Array | np.ndarray, "_ T U"],
    read: transformer.Positions,
    segments: transformer.Segments = None,
  ) -> Float[Array, "B Q D"]:
    """Features read at some tokens; `position_BxTxU` tells each token its place in its text."""
    # Indexing before the cast sums the gradients of repeated tokens in float32.
    x_BxTxU = self.token_embedding[...][tokens_BxT].astype(self.dtype)
    x_BxTxU = x_BxTxU + position_BxTxU.astype(self.dtype)
    read_BxQxU = transformer.run_blocks(
      transformer.Blocks(self.blocks, self.last_block),
      x_BxTxU,
      self.backend,
      read,
      self.backend.frozen_text_blocks,
      segments,
    )
    feature_BxQxD = matmul(self.norm_final(read_BxQxU), self.projection[...])
    if self.family.is_siglip:
      feature_BxQxD += self.projection_bias[...][None, None]
    return feature_BxQxD
