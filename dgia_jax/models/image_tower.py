"""The vision transformer of CLIP and SigLIP, for images of any rectangular size.

Its T tokens are the patches, row by row; in CLIP's the class token comes before them.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgia_jax.models import transformer
from dgia_jax.models.attention_pooling import AttentionPooling
from dgia_jax.models.backend import Backend, matmul
from dgia_jax.models.families import Family


class ImageTower(nnx.Module):
  """Embeds patches, runs pre-norm blocks over them and makes one feature of the result.

  CLIP's is the class token, projected. SigLIP pools all patches with attention.

  Args:
    width: U.
    depth: number of blocks.
    heads: attention heads.
    mlp_width: inner width of the MLPs; 0 means 4 U.
    family: of the model.
    feature_width: D.
    patch_size: side of a square patch in pixels. Pixels on the right and at the bottom that fill no
      patch are cut off.
    image_size: (height, width) in pixels.
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
    patch_size: int,
    image_size: tuple[int, int],
    dtype: DTypeLike,
    backend: Backend,
    rngs: nnx.Rngs,
  ):
    num_tokens = (image_size[0] // patch_size) * (image_size[1] // patch_size)
    normal = nnx.initializers.normal
    width_scaled = normal(width**-0.5)
    pixels_per_patch = 3 * patch_size**2

    def param(init: nnx.Initializer, *shape: int) -> nnx.Param:
      return nnx.Param(init(rngs.params(), shape, jnp.float32))

    self.dtype = dtype
    self.backend = backend
    self.family = family
    self.patch_embedding = param(normal(pixels_per_patch**-0.5), patch_size, patch_size, 3, width)
    if family.is_siglip:
      self.patch_bias = param(nnx.initializers.zeros, width)
    else:
      num_tokens += 1
      self.class_embedding = param(width_scaled, width)
    self.position_embedding = param(width_scaled, num_tokens, width)
    if not family.is_siglip:
      self.norm_pre = transformer.layer_norm(width, family=family, dtype=dtype, rngs=rngs)
    self.blocks, self.last_block = transformer.create_blocks(
      lambda rngs: transformer.Block(
        width,
        heads,
        mlp_width,
        depth=depth,
        causal=False,
        family=family,
        dtype=dtype,
        backend=backend,
        rngs=rngs,
      ),  # fmt: skip
      depth,
      rngs,
    )
    norm_dtype = dtype if family.is_siglip else jnp.float32
    self.norm_post = transformer.layer_norm(width, family=family, dtype=norm_dtype, rngs=rngs)
    if family.is_siglip:
      assert feature_width == width, "SigLIP's image features are not projected"
      self.pooling = AttentionPooling(
        width, heads, mlp_width, family=family, dtype=dtype, backend=backend, rngs=rngs
      )
    else:
      self.projection = param(width_scaled, width, feature_width)

  def __call__(
    self,
    pixels_BxHxWx3: Float[Array | np.ndarray, "B H W 3"],
    kept_BxZ: Int[Array | np.ndarray, "B Z"] | None = None,
  ) -> Float[Array, "B D"]:
    """Encodes normalised pixels; the features are float32 and not normalised.

    Only the patches `kept_BxZ` of each image are read; None means all.
    """
    x_BxTxU = self.embed_patches(pixels_BxHxWx3, kept_BxZ)
    blocks = transformer.Blocks(self.blocks, self.last_block)
    num_frozen = self.backend.frozen_image_blocks
    if self.family.is_siglip:
      x_BxTxU = transformer.run_blocks(blocks, x_BxTxU, self.backend, None, num_frozen)
      return self.pooling(self.norm_post(x_BxTxU))
    class_token_Bx1xU = transformer.run_blocks(
      blocks, self.norm_pre(x_BxTxU), self.backend, 0, num_frozen
    )
    return matmul(self.norm_post(class_token_Bx1xU[:, 0]), self.projection[...])

  def embed_patches(
    self,
    pixels_BxHxWx3: Float[Array | np.ndarray, "B H W 3"],
    kept_BxZ: Int[Array | np.ndarray, "B Z"] | None = None,
  ) -> Float[Array, "B T U"]:
    """Returns the tokens with their positions; without those of patches that are not kept."""
    batch, height, width, _ = pixels_BxHxWx3.shape
    kernel = self.patch_embedding[...].astype(self.dtype)
    side = kernel.shape[0]
    pixels_BxHxWx3 = pixels_BxHxWx3[:, : height // side * side, : width // side * side]
    # Patches do not overlap, so the convolution is one matrix product of flattened patches.
    patches = pixels_BxHxWx3.astype(self.dtype).reshape(
      batch, height // side, side, width // side, side, 3
    )
    patches = patches.swapaxes(2, 3).reshape(batch, -1, side * side * 3)
    position_TxU = self.position_embedding[...]
    if self.family.is_siglip:
      position_TxU = position_TxU + self.patch_bias[...][None]
    position_BxTxU = position_TxU[None]
    if kept_BxZ is not None:
      patches = jnp.take_along_axis(patches, kept_BxZ[:, :, None], axis=1)
      # The class token comes first and is always kept.
      kept_BxT = kept_BxZ if self.family.is_siglip else jnp.pad(kept_BxZ + 1, ((0, 0), (1, 0)))
      position_BxTxU = position_TxU[kept_BxT]
    x_BxTxU = matmul(patches, kernel.reshape(side * side * 3, -1))
    if self.family.is_siglip:
      return x_BxTxU + position_BxTxU.astype(self.dtype)
    class_Bx1xU = jnp.broadcast_to(
      self.class_embedding[...].astype(self.dtype), (batch, 1, x_BxTxU.shape[-1])
    )
    x_BxTxU = jnp.concatenate([class_Bx1xU, x_BxTxU], axis=1)
    return x_BxTxU + position_BxTxU.astype(self.dtype)
