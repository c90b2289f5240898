"""What CLIP, OpenCLIP and SigLIP compute differently at the same size."""

import dataclasses

from dgia_jax.models import pixels
from dgia_jax.models.pixels import PixelStatistics


@dataclasses.dataclass(frozen=True)
class Family:
  """The choices that models of one origin share.

  Attributes:
    name: "CLIP", "OpenCLIP" or "SigLIP".
    activation: of the MLPs, a key of `transformer.ACTIVATIONS`.
    layer_norm_epsilon: of every LayerNorm.
    is_siglip: the towers' layout. CLIP's image tower has a class token, a norm before the blocks
      and a projection; its text tower is causal and read at the end token. SigLIP's image tower
      pools its patches with attention and has no projection; its text tower is not causal and
      read at the last position, which padding usually holds.
    pixels: the normalisation of images.
  """

  name: str
  activation: str
  layer_norm_epsilon: float
  is_siglip: bool
  pixels: PixelStatistics


CLIP = Family("CLIP", "quick_gelu", 1e-5, is_siglip=False, pixels=pixels.CLIP)
# Models of LAION, DataComp and others that were trained with open_clip.
OPEN_CLIP = Family("OpenCLIP", "gelu", 1e-5, is_siglip=False, pixels=pixels.CLIP)
# SigLIP and the models of SigLIP 2 for one image size.
SIGLIP = Family("SigLIP", "gelu_tanh", 1e-6, is_siglip=True, pixels=pixels.SIGLIP)
FAMILIES = (CLIP, OPEN_CLIP, SIGLIP)
