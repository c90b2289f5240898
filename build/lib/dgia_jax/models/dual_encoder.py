"""CLIP's dual encoder: an image tower and a text tower that share one feature space.

The modules are Flax NNX, used only to describe the model. Callers split it once,
`graphdef, params = nnx.split(model, nnx.Param)`, keep `params` as their state, and call
`nnx.merge(graphdef, params)` inside `jax.jit`. The model has no state besides its parameters.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgia_jax.errors import UserError
from dgia_jax.models import backend as backend_lib
from dgia_jax.models.image_tower import ImageTower
from dgia_jax.models.text_tower import TextTower


@dataclasses.dataclass(frozen=True)
class TowerSize:
  """The size of one transformer: its width, number of blocks and number of attention heads."""

  width: int
  depth: int
  heads: int


@dataclasses.dataclass(frozen=True)
class Size:
  """The size of a dual encoder; `patch_size` is the side of a square patch in pixels."""

  image: TowerSize
  text: TowerSize
  feature_width: int
  patch_size: int


SIZES = {
  # For training from scratch on a CPU, with images of 64 x 32 pixels.
  "tiny": Size(TowerSize(64, 3, 2), TowerSize(64, 2, 2), feature_width=64, patch_size=8),
  "small": Size(TowerSize(256, 6, 4), TowerSize(256, 4, 4), feature_width=256, patch_size=16),
  # The sizes of OpenAI's CLIP.
  "vit_b_32": Size(TowerSize(768, 12, 12), TowerSize(512, 12, 8), feature_width=512, patch_size=32),
  "vit_b_16": Size(TowerSize(768, 12, 12), TowerSize(512, 12, 8), feature_width=512, patch_size=16),
  "vit_l_14": Size(
    TowerSize(1024, 24, 16), TowerSize(768, 12, 12), feature_width=768, patch_size=14
  ),
}


class DualEncoder(nnx.Module):
  """Both towers. Every parameter is a float32 `nnx.Param`.

  Args:
    size: of both towers.
    image_size: (height, width) in pixels, both multiples of `size.patch_size`.
    context_length: longest text in tokens.
    vocab_size: number of token ids; the end token has the highest.
    dtype: of the computation inside the towers; weights and features are float32.
    backend: how the blocks are computed.
    rngs: draws the initial weights (stream `params`).

  Raises:
    UserError: the patch size does not divide `image_size`.
  """

  def __init__(
    self,
    size: Size,
    *,
    image_size: tuple[int, int],
    context_length: int,
    vocab_size: int,
    dtype: DTypeLike = jnp.float32,
    backend: backend_lib.Backend = backend_lib.DEFAULT,
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
      backend=backend,
      rngs=rngs,
    )
    self.text = TextTower(
      **dataclasses.asdict(size.text),
      feature_width=size.feature_width,
      vocab_size=vocab_size,
      context_length=context_length,
      dtype=dtype,
      backend=backend,
      rngs=rngs,
    )

  def encode_image(
    self, pixels_BxHxWx3: Float[Array | np.ndarray, "B H W 3"]
  ) -> Float[Array, "B D"]:
    """Encodes normalised pixels (see `pixels`); the features are float32 and not normalised."""
    return self.image(pixels_BxHxWx3)

  def encode_text(self, tokens_BxL: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B D"]:
    """Encodes token ids, L <= context length; the features are float32 and not normalised."""
    return self.text(tokens_BxL)


def create(
  name: str,
  *,
  image_size: tuple[int, int],
  context_length: int,
  vocab_size: int,
  dtype: DTypeLike = jnp.float32,
  backend: backend_lib.Backend = backend_lib.DEFAULT,
  rngs: nnx.Rngs,
  patch_size: int | None = None,
) -> DualEncoder:
  """Creates the model of the size `SIZES[name]`; `patch_size` replaces that of the size.

  Raises:
    UserError: the name is unknown, or the patch size does not divide `image_size`.
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
    backend=backend,
    rngs=rngs,
  )
