"""How pixels are normalised: each family of models expects its own statistics."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


class PixelStatistics(NamedTuple):
  """Mean and standard deviation of each channel, RGB, of values in [0, 1]."""

  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  def fill(self) -> Float[np.ndarray, "3"]:
    """The colour that erased rectangles have: the mean, as a plain normalised value."""
    return np.array(self.mean, np.float32)


CLIP = PixelStatistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def normalize_pixels(
  images: UInt8[Array | np.ndarray, "*shape 3"], statistics: PixelStatistics = CLIP
) -> Float[Array | np.ndarray, "*shape 3"]:
  """Scales RGB values to [0, 1] and standardises each channel."""
  shape = (1,) * (images.ndim - 1) + (3,)
  mean, std = (np.array(values, np.float32).reshape(shape) for values in statistics)
  return (images.astype(jnp.float32) / 255.0 - mean) / std
