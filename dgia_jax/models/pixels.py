"""From stored pixels to what the image tower expects: CLIP's channel statistics."""

import jax
import jax.numpy as jnp
import numpy as np

# CLIP's pixel statistics, RGB, for values in [0, 1].
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalize_pixels(images: jax.Array | np.ndarray) -> jax.Array:
  """Scales uint8 RGB (..., 3) to [0, 1] and standardises each channel as CLIP does: float32."""
  shape = (1,) * (images.ndim - 1) + (3,)
  mean, std = PIXEL_MEAN.reshape(shape), PIXEL_STD.reshape(shape)
  return (images.astype(jnp.float32) / 255.0 - mean) / std
