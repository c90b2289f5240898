"""CLIP's pixel normalisation."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# Per channel, RGB, of values in [0, 1].
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalize_pixels(
  images: UInt8[Array | np.ndarray, "*shape 3"],
) -> Float[Array | np.ndarray, "*shape 3"]:
  """Scales RGB values to [0, 1] and standardises each channel with CLIP's statistics."""
  shape = (1,) * (images.ndim - 1) + (3,)
  mean, std = PIXEL_MEAN.reshape(shape), PIXEL_STD.reshape(shape)
  return (images.astype(jnp.float32) / 255.0 - mean) / std
