"""CLIP's vision transformer, for images of any rectangular size.

Its T tokens are the class token and then the patches, row by row.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dgia_jax.models import transformer
from dgia_jax.models.backend import Backend


class ImageTower(nnx.Module):
  """Embeds patches, runs pre-norm blocks over them and projects the class token to the feature.

  Args:
    width: U.
    depth: number of blocks.
    heads: attention heads.
    feature_width: D.
    patch_size: side of a square patch in pixels; must divide both sides of the image.
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
    feature_width: int,
    patch_size: int,
    image_size: tuple[int, int],
    dtype: DTypeLike,
    backend: Backend,
    rngs: nnx.Rngs,
  ):
    num_tokens = 1 + (image_size[0] // patch_size) * (image_size[1] // patch_size)
    normal = nnx.initializers.normal
    width_scaled = normal(width**-0.5)
    pixels_per_patch = 3 * patch_size**2

    def param(init: nnx.Initializer, *shape: int) -> nnx.Param:
      return nnx.Param(init(rngs.params(), shape, jnp.float32))

    self.dtype = dtype
    self.backend = backend
    self.patch_embedding = param(normal(pixels_per_patch**-0.5), patch_size, patch_size, 3, width)
    self.class_embedding = param(width_scaled, width)
    self.position_embedding = param(width_scaled, num_tokens, width)
    self.norm_pre = transformer.layer_norm(width, dtype=dtype, rngs=rngs)
    self.blocks, self.last_block = transformer.create_blocks(
      lambda rngs: transformer.Block(
        width, heads, depth=depth, causal=False, dtype=dtype, backend=backend, rngs=rngs
      ),
      depth,
      rngs,
    )
    self.norm_post = transformer.layer_norm(width, dtype=jnp.float32, rngs=rngs)
    self.projection = param(width_scaled, width, feature_width)

  def __call__(self, pixels_BxHxWx3: Float[Array | np.ndarray, "B H W 3"]) -> Float[Array, "B D"]:
    """Encodes normalised pixels; the features are float32 and not normalised."""
    x_BxTxU = self.embed_patches(pixels_BxHxWx3)
    blocks = transformer.Blocks(self.blocks, self.last_block)
    class_token_BxU = transformer.run_blocks(
      blocks, self.norm_pre(x_BxTxU), self.backend, position=0
    )
    return self.norm_post(class_token_BxU) @ self.projection[...]

  def embed_patches(
    self, pixels_BxHxWx3: Float[Array | np.ndarray, "B H W 3"]
  ) -> Float[Array, "B T U"]:
    """Returns the class token and the patches, with positions: the input of the first norm."""
    batch, height, width, _ = pixels_BxHxWx3.shape
    kernel = self.patch_embedding[...].astype(self.dtype)
    side = kernel.shape[0]
    # Patches do not overlap, so the convolution is one matrix product of flattened patches.
    patches = pixels_BxHxWx3.astype(self.dtype).reshape(
      batch, height // side, side, width // side, side, 3
    )
    patches = patches.swapaxes(2, 3).reshape(batch, -1, side * side * 3)
    x_BxTxU = patches @ kernel.reshape(side * side * 3, -1)
    class_Bx1xU = jnp.broadcast_to(
      self.class_embedding[...].astype(self.dtype), (batch, 1, x_BxTxU.shape[-1])
    )
    x_BxTxU = jnp.concatenate([class_Bx1xU, x_BxTxU], axis=1)
    return x_BxTxU + self.position_embedding[...].astype(self.dtype)[None]
