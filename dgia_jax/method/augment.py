"""The information-asymmetric view of a pair, made on the device (paper section 3.4).

The clean view is the image as stored, normalised. The distorted view loses information on purpose:
flip, shifted crop and an erased rectangle for the image, masked words for the text. All draws come
from one key, so a resumed run sees the same views bit for bit, and sharding does not change them.

Images: (B, H, W, 3) uint8 in, normalised float32 out. Tokens: (B, L) int32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dgia_jax.models.pixels import PIXEL_MEAN, normalize_pixels

ERASE_ATTEMPTS = 10


def _flip_and_shift(key, image_HxWx3, flip_prob, padding):
  """Mirror with the given probability, then crop back from a frame of `padding` black pixels."""
  flip_key, crop_key = jax.random.split(key)
  height, width, _ = image_HxWx3.shape
  flip = jax.random.bernoulli(flip_key, flip_prob)
  image_HxWx3 = jnp.where(flip, image_HxWx3[:, ::-1], image_HxWx3)
  framed = jnp.pad(image_HxWx3, ((padding, padding), (padding, padding), (0, 0)))
  top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
  return jax.lax.dynamic_slice(framed, (top, left, 0), (height, width, 3))


def _erase_box(key, height, width, area, aspect):
  """A random box (top, left, height, width) in pixels; height 0 when no attempt fits the image."""
  area_key, aspect_key, place_key = jax.random.split(key, 3)
  shape = (ERASE_ATTEMPTS,)
  size_A = jax.random.uniform(area_key, shape, minval=area[0], maxval=area[1]) * height * width
  ratio_A = jnp.exp(
    jax.random.uniform(aspect_key, shape, minval=np.log(aspect[0]), maxval=np.log(aspect[1]))
  )
  height_A = jnp.round(jnp.sqrt(size_A * ratio_A)).astype(jnp.int32)
  width_A = jnp.round(jnp.sqrt(size_A / ratio_A)).astype(jnp.int32)
  fits_A = (height_A < height) & (width_A < width)
  first = jnp.argmax(fits_A)
  box_height = jnp.where(fits_A[first], height_A[first], 0)
  box_width = jnp.where(fits_A[first], width_A[first], 0)
  room = jnp.stack([height - box_height + 1, width - box_width + 1])
  top, left = jnp.floor(jax.random.uniform(place_key, (2,)) * room).astype(jnp.int32)
  return top, left, box_height, box_width


def _erase(key, image_HxWx3, probability, area, aspect):
  """Fills a random box of a normalised image with the per-channel CLIP mean, as a plain value."""
  erase_key, box_key = jax.random.split(key)
  height, width, _ = image_HxWx3.shape
  top, left, box_height, box_width = _erase_box(box_key, height, width, area, aspect)
  row_H, column_W = jnp.arange(height), jnp.arange(width)
  inside_HxW = ((row_H >= top) & (row_H < top + box_height))[:, None] & (
    (column_W >= left) & (column_W < left + box_width)
  )[None, :]
  erase = jax.random.bernoulli(erase_key, probability)
  return jnp.where((inside_HxW & erase)[:, :, None], PIXEL_MEAN[None, None], image_HxWx3)


def distort_images(
  key,
  images,
  *,
  flip_prob=0.5,
  padding=10,
  erase_prob=0.5,
  erase_area=(0.02, 0.4),
  erase_aspect=(0.3, 3.3),
):
  """The image half of the distorted view (section 3.4).

  Args:
    key: a JAX random key.
    images: (B, H, W, 3) uint8.
    flip_prob: of mirroring left and right.
    padding: pixels of zeros around the image before the random crop back to (H, W).
    erase_prob: of erasing a rectangle after normalisation.
    erase_area: smallest and largest erased share of the image's area.
    erase_aspect: smallest and largest height / width of the rectangle, drawn log-uniformly.

  Returns:
    (B, H, W, 3) float32, normalised.
  """
  shift_keys, erase_keys = jax.random.split(key, (2, images.shape[0]))
  shift = lambda key, image: _flip_and_shift(key, image, flip_prob, padding)
  erase = lambda key, image: _erase(key, image, erase_prob, erase_area, erase_aspect)
  return jax.vmap(erase)(erase_keys, normalize_pixels(jax.vmap(shift)(shift_keys, images)))


def mask_tokens(key, tokens, *, mask_id, ratio=0.5, mask_first=True):
  """The text half of the distorted view (section 3.4): words become the mask token.

  Tokens with 0 < id < mask_id are words; padding, start, end and the mask itself are not.

  Args:
    key: a JAX random key.
    tokens: (B, L) int32.
    mask_id: id of the mask token.
    ratio: probability of each word to be masked, independently.
    mask_first: mask the first word's token always (what the released code does by a slip).

  Returns:
    (B, L) int32.
  """
  chosen = jax.random.bernoulli(key, ratio, tokens.shape)
  if mask_first:
    chosen |= (jnp.arange(tokens.shape[1]) == 1)[None, :]
  return jnp.where(chosen & (tokens > 0) & (tokens < mask_id), mask_id, tokens)
