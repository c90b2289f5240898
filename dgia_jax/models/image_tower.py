"""CLIP's vision transformer: an image of any rectangular size to one feature.

Letters: B images, H and W pixels, P tokens (the class token and the patches, row by row), C width
of the tower, D width of the feature.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dgia_jax.models import transformer
from dgia_jax.models.backend import Execution


class ImageTower(nnx.Module):
  """Patches and a class token through pre-norm blocks; the class token becomes the feature.

  Args:
    width, depth, heads: of the transformer.
    feature_width: D.
    patch_size: side of a square patch in pixels; must divide both sides of the image.
    image_size: (H, W) in pixels.
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
    patch_size: int,
    image_size: tuple[int, int],
    dtype: jnp.dtype,
    execution: Execution,
    rngs: nnx.Rngs,
  ):
    num_tokens = 1 + (image_size[0] // patch_size) * (image_size[1] // patch_size)
    normal = nnx.initializers.normal
    width_scaled = normal(width**-0.5)
    pixels_per_patch = 3 * patch_size**2

    def param(init, *shape: int) -> nnx.Param:
      return nnx.Param(init(rngs.params(), shape, jnp.float32))

    self.dtype = dtype
    self.execution = execution
    self.patch_embedding = param(normal(pixels_per_patch**-0.5), patch_size, patch_size, 3, width)
    self.class_embedding = param(width_scaled, width)
    self.position_embedding = param(width_scaled, num_tokens, width)
    self.norm_pre = transformer.layer_norm(width, dtype=dtype, rngs=rngs)
    self.blocks = transformer.stack_blocks(
      lambda rngs: transformer.Block(
        width, heads, depth=depth, causal=False, dtype=dtype, execution=execution, rngs=rngs
      ),
      depth,
      rngs,
    )
    self.norm_post = transformer.layer_norm(width, dtype=jnp.float32, rngs=rngs)
    self.projection = param(width_scaled, width, feature_width)

  def __call__(self, pixels_BxHxWx3: jax.Array) -> jax.Array:
    """Normalised pixels, float (B, H, W, 3), to float32 features (B, D), not normalised."""
    x_BxPxC = self.embed_patches(pixels_BxHxWx3)
    x_BxPxC = transformer.run_blocks(self.blocks, self.norm_pre(x_BxPxC), self.execution)
    # Only the class token is projected; the other tokens are nobody's feature.
    pooled_BxC = self.norm_post(x_BxPxC[:, 0])
    return pooled_BxC @ self.projection[...]

  def embed_patches(self, pixels_BxHxWx3: jax.Array) -> jax.Array:
    """Normalised pixels to what enters the first norm: class token and patches with positions."""
    batch, height, width, _ = pixels_BxHxWx3.shape
    kernel = self.patch_embedding[...].astype(self.dtype)
    side = kernel.shape[0]
    # Patches do not overlap, so the convolution is one matrix product of flattened patches.
    patches = pixels_BxHxWx3.astype(self.dtype).reshape(
      batch, height // side, side, width // side, side, 3
    )
    patches = patches.swapaxes(2, 3).reshape(batch, -1, side * side * 3)
    x_BxPxC = patches @ kernel.reshape(side * side * 3, -1)
    class_Bx1xC = jnp.broadcast_to(
      self.class_embedding[...].astype(self.dtype), (batch, 1, x_BxPxC.shape[-1])
    )
    x_BxPxC = jnp.concatenate([class_Bx1xC, x_BxPxC], axis=1)
    return x_BxPxC + self.position_embedding[...].astype(self.dtype)[None]
