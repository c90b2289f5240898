"""The CLIP dual encoder: an image tower and a text tower that end in one feature space.

Written as Flax NNX modules, which serve as a language for models only. Callers split the model
once, `graphdef, params = nnx.split(model, nnx.Param)`, keep `params` as their state, and call
`nnx.merge(graphdef, params)` inside `jax.jit`. Parameters are the only state there is.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dgia_jax.errors import UserError
from dgia_jax.models.backend import PLAIN, Execution
from dgia_jax.models.image_tower import ImageTower
from dgia_jax.models.text_tower import TextTower


@dataclasses.dataclass(frozen=True)
class TowerSize:
  """A transformer: its width, number of blocks and number of attention heads."""

  width: int
  depth: int
  heads: int


@dataclasses.dataclass(frozen=True)
class Size:
  """A dual encoder: both towers, the width of the shared feature and the patch side in pixels."""

  image: TowerSize
  text: TowerSize
  feature_width: int
  patch_size: int


SIZES = {
  # From scratch on a CPU, for images of 64 x 32.
  "tiny": Size(TowerSize(64, 3, 2), TowerSize(64, 2, 2), feature_width=64, patch_size=8),
  "small": Size(TowerSize(256, 6, 4), TowerSize(256, 4, 4), feature_width=256, patch_size=16),
  # CLIP's own.
  "vit_b_32": Size(TowerSize(768, 12, 12), TowerSize(512, 12, 8), feature_width=512, patch_size=32),
  "vit_b_16": Size(TowerSize(768, 12, 12), TowerSize(512, 12, 8), feature_width=512, patch_size=16),
  "vit_l_14": Size(
    TowerSize(1024, 24, 16), TowerSize(768, 12, 12), feature_width=768, patch_size=14
  ),
}


class DualEncoder(nnx.Module):
  """Both towers; every state is an `nnx.Param` in float32.

  Args:
    size: of the model.
    image_size: (height, width) in pixels, both multiples of `size.patch_size`.
    context_length: the longest text, in tokens.
    vocab_size: number of token ids; the end token is the highest.
    dtype: of the computation inside the towers; weights and features are float32.
    execution: how blocks are computed.
    rngs: draws the starting weights (stream `params`).
  """

  def __init__(
    self,
    size: Size,
    *,
    image_size: tuple[int, int],
    context_length: int,
    vocab_size: int,
    dtype: jnp.dtype = jnp.float32,
    execution: Execution = PLAIN,
    rngs: nnx.Rngs,
  ):
    if any(side <= 0 or side % size.patch_size for side in image_size):
      raise UserError(
        f"dataset.image_size {tuple(image_size)}: both sides must be multiples of the patch size"
        f" {size.patch_size} of the model"
      )
    self.image = ImageTower(
      **dataclasses.asdict(size.image),
      feature_width=size.feature_width,
      patch_size=size.patch_size,
      image_size=image_size,
      dtype=dtype,
      execution=execution,
      rngs=rngs,
    )
    self.text = TextTower(
      **dataclasses.asdict(size.text),
      feature_width=size.feature_width,
      vocab_size=vocab_size,
      context_length=context_length,
      dtype=dtype,
      execution=execution,
      rngs=rngs,
    )

  def encode_image(self, pixels_BxHxWx3: jax.Array) -> jax.Array:
    """Pixels normalised with CLIP's mean and std, float (B, H, W, 3), to float32 (B, D)."""
    return self.image(pixels_BxHxWx3)

  def encode_text(self, tokens_BxL: jax.Array) -> jax.Array:
    """Token ids, int32 (B, L) with L up to the context length, to float32 (B, D)."""
    return self.text(tokens_BxL)


def create(
  name: str,
  *,
  image_size: tuple[int, int],
  context_length: int,
  vocab_size: int,
  dtype: jnp.dtype = jnp.float32,
  execution: Execution = PLAIN,
  rngs: nnx.Rngs,
  patch_size: int | None = None,
) -> DualEncoder:
  """Makes the model called `name` in `SIZES`; `patch_size` replaces the size's own.

  Raises:
    UserError: the name is unknown, or `image_size` is not a multiple of the patch size.
  """
  if name not in SIZES:
    raise UserError(f"model.name {name!r} is not one of {', '.join(SIZES)}")
  size = SIZES[name]
  if patch_size is not None:
    size = dataclasses.replace(size, patch_size=patch_size)
  return DualEncoder(
    size,
    image_size=image_size,
    context_length=context_length,
    vocab_size=vocab_size,
    dtype=dtype,
    execution=execution,
    rngs=rngs,
  )
