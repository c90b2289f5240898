"""The dual encoders of CLIP, OpenCLIP and SigLIP: an image tower and a text tower that share
one feature space.

The modules are Flax NNX, used only to describe the model. Callers split it once,
`graphdef, params = nnx.split(model, nnx.Param)`, keep `params` as their state, and call
`nnx.merge(graphdef, params)` inside `jax.jit`. The model has no state besides its parameters.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from dgia_jax.errors import UserError
from dgia_jax.models import backend as backend_lib
from dgia_jax.models import families
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.models.families import Family
from dgia_jax.models.image_tower import ImageTower
from dgia_jax.models.text_tower import TextTower


@dataclasses.dataclass(frozen=True)
class TowerSize:
  """The size of one transformer.

  Attributes:
    width: U.
    depth: number of blocks.
    heads: attention heads.
    mlp_width: inner width of the MLPs; 0 means 4 U.
  """

  width: int
  depth: int
  heads: int
  mlp_width: int = 0


@dataclasses.dataclass(frozen=True)
class Size:
  """The size of a dual encoder; `patch_size` is the side of a square patch in pixels."""

  image: TowerSize
  text: TowerSize
  feature_width: int
  patch_size: int
  family: Family = families.CLIP

  def num_patches(self, image_size: Sequence[int]) -> int:
    """Whole patches of an image of (height, width) pixels."""
    height, width = image_size
    return (height // self.patch_size) * (width // self.patch_size)


_BASE, _LARGE, _HUGE = TowerSize(768, 12, 12), TowerSize(1024, 24, 16), TowerSize(1280, 32, 16)
_SO400M = TowerSize(1152, 27, 16, mlp_width=4304)  # as many parameters as a scaling law suggests
# Sizes of CLIP, as published by OpenAI and, up to vit_h_14, trained again with open_clip.
_CLIP_SIZES = {
  "vit_b_32": Size(_BASE, TowerSize(512, 12, 8), feature_width=512, patch_size=32),
  "vit_b_16": Size(_BASE, TowerSize(512, 12, 8), feature_width=512, patch_size=16),
  "vit_l_14": Size(_LARGE, TowerSize(768, 12, 12), feature_width=768, patch_size=14),
  "vit_h_14": Size(_HUGE, TowerSize(1024, 24, 16), feature_width=1024, patch_size=14),
}


def _siglip(tower: TowerSize, patch_size: int) -> Size:
  """Both towers of SigLIP have one size."""
  return Size(tower, tower, tower.width, patch_size, families.SIGLIP)


SIZES = {
  # For training from scratch on a CPU, with images of 64 x 32 pixels.
  "tiny": Size(TowerSize(64, 3, 2), TowerSize(64, 2, 2), feature_width=64, patch_size=8),
  # Of the pretrained model in the package, `pretrained="mini"`.
  "mini": Size(TowerSize(192, 4, 3), TowerSize(128, 3, 2), feature_width=128, patch_size=8),
  "small": Size(TowerSize(256, 6, 4), TowerSize(256, 4, 4), feature_width=256, patch_size=16),
  **_CLIP_SIZES,
  **{
    f"openclip_{name}": dataclasses.replace(size, family=families.OPEN_CLIP)
    for name, size in _CLIP_SIZES.items()
  },
  # SigLIP and SigLIP 2 differ in their vocabularies only.
  "siglip_b_32": _siglip(_BASE, 32),
  "siglip_b_16": _siglip(_BASE, 16),
  "siglip_l_16": _siglip(_LARGE, 16),
  "siglip_so400m_14": _siglip(_SO400M, 14),
  "siglip_so400m_16": _siglip(_SO400M, 16),
}


def named(name: str) -> Size:
  """The size `SIZES[name]`; raises UserError if the name is unknown."""
  if name not in SIZES:
    raise UserError(f"model.name {name!r} is not one of {', '.join(SIZES)}")
  return SIZES[name]


def names_of(size: Size) -> list[str]:
  """The names in `SIZES` that a size has."""
  return [name for name, known in SIZES.items() if known == size]


class DualEncoder(nnx.Module):
  """Both towers. Every parameter is a float32 `nnx.Param`.

  Args:
    size: of both towers.
    image_size: (height, width) in pixels, both multiples of `size.patch_size`. SigLIP's may leave
      a remainder, which is cut off, as in so400m_14 at 384 x 384.
    context_length: longest text in tokens.
    vocab_size: number of token ids; in CLIP's text tower the end token has the highest.
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
    leaves_remainder = any(side % size.patch_size for side in image_size)
    if min(image_size) < size.patch_size or (leaves_remainder and not size.family.is_siglip):
      raise UserError(
        f"dataset.image_size {tuple(image_size)}: both sides must be multiples of the patch size"
        f" {size.patch_size} of the model"
      )
    self.family = size.family
    self.image = ImageTower(
      **dataclasses.asdict(size.image),
      family=size.family,
      feature_width=size.feature_width,
      patch_size=size.patch_size,
      image_size=image_size,
      dtype=dtype,
      backend=backend,
      rngs=rngs,
    )
    self.text = TextTower(
      **dataclasses.asdict(size.text),
      family=size.family,
      feature_width=size.feature_width,
      vocab_size=vocab_size,
      context_length=context_length,
      dtype=dtype,
      backend=backend,
      rngs=rngs,
    )

  def normalize_pixels(
    self, images: UInt8[Array | np.ndarray, "*shape 3"]
  ) -> Float[Array | np.ndarray, "*shape 3"]:
    """Normalises RGB images as the model expects them."""
    return pixels_lib.normalize_pixels(images, self.family.pixels)

  def encode_image(
    self,
    pixels_BxHxWx3: Float[Array | np.ndarray, "B H W 3"],
    kept_BxZ: Int[Array | np.ndarray, "B Z"] | None = None,
  ) -> Float[Array, "B D"]:
    """Encodes pixels of `normalize_pixels`; the features are float32 and not normalised.

    Only the patches `kept_BxZ` of each image are read; None means all.
    """
    return self.image(pixels_BxHxWx3, kept_BxZ)

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
  size = named(name)
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
