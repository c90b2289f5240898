"""The distorted view of a pair, made on the device (section 3.4).

The clean view is the stored image, normalised. The distorted view loses information on purpose:
flip, shifted crop and an erased rectangle for the image, masked words for the caption. Not in the
paper: patches of the image that the tower does not read. All draws come from one key, so a resumed
run sees the same views bit for bit, on any mesh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, ScalarLike, UInt8

from dgia_jax.models.pixels import PixelStatistics, normalize_pixels

ERASE_ATTEMPTS = 10
Key = jax.Array  # of `jax.random.key`, or an old-style one


class Masking(NamedTuple):
  """What the masking of words needs to know about a tokenizer's ids.

  Attributes:
    mask_id: replaces a word.
    first_id, end_id: first_id <= id < end_id are words; padding, start, end and mask are not.
    first_word: position of a caption's first word, 1 after a start token and 0 without one.
  """

  mask_id: ScalarLike
  first_id: ScalarLike
  end_id: ScalarLike
  first_word: ScalarLike

  @classmethod
  def below(cls, mask_id: ScalarLike) -> "Masking":
    """The masking of CLIP's ids: words are 0 < id < mask_id and follow a start token."""
    return cls(mask_id, first_id=1, end_id=mask_id, first_word=1)


def _flip_and_shift(
  key: Key, image_HxWx3: UInt8[Array, "H W 3"], flip_prob: ScalarLike, padding: int
) -> UInt8[Array, "H W 3"]:
  """Mirrors with the given probability, pads with black pixels and crops back at random."""
  flip_key, crop_key = jax.random.split(key)
  height, width, _ = image_HxWx3.shape
  flip = jax.random.bernoulli(flip_key, flip_prob)
  image_HxWx3 = jnp.where(flip, image_HxWx3[:, ::-1], image_HxWx3)
  padded = jnp.pad(image_HxWx3, ((padding, padding), (padding, padding), (0, 0)))
  top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, 3))


def _erase_box(
  key: Key, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[Array, Array, Array, Array]:
  """A random box (top, left, height, width) in pixels: the first of C candidates that fits.

  Its height is 0 when none fits the image.
  """
  area_key, aspect_key, place_key = jax.random.split(key, 3)
  shape = (ERASE_ATTEMPTS,)
  size_C = jax.random.uniform(area_key, shape, minval=area[0], maxval=area[1]) * height * width
  ratio_C = jnp.exp(
    jax.random.uniform(aspect_key, shape, minval=np.log(aspect[0]), maxval=np.log(aspect[1]))
  )
  height_C = jnp.round(jnp.sqrt(size_C * ratio_C)).astype(jnp.int32)
  width_C = jnp.round(jnp.sqrt(size_C / ratio_C)).astype(jnp.int32)
  fits_C = (height_C < height) & (width_C < width)
  first = jnp.argmax(fits_C)
  box_height = jnp.where(fits_C[first], height_C[first], 0)
  box_width = jnp.where(fits_C[first], width_C[first], 0)
  room = jnp.stack([height - box_height + 1, width - box_width + 1])
  top, left = jnp.floor(jax.random.uniform(place_key, (2,)) * room).astype(jnp.int32)
  return top, left, box_height, box_width


def _erase(
  key: Key,
  image_HxWx3: Float[Array, "H W 3"],
  erase_prob: ScalarLike,
  area: tuple[float, float],
  aspect: tuple[float, float],
  fill: Float[np.ndarray, "3"],
) -> Float[Array, "H W 3"]:
  """Fills a random box of a normalised image with one colour."""
  erase_key, box_key = jax.random.split(key)
  height, width, _ = image_HxWx3.shape
  top, left, box_height, box_width = _erase_box(box_key, height, width, area, aspect)
  row_H, column_W = jnp.arange(height), jnp.arange(width)
  inside_HxW = ((row_H >= top) & (row_H < top + box_height))[:, None] & (
    (column_W >= left) & (column_W < left + box_width)
  )[None, :]
  erase = jax.random.bernoulli(erase_key, erase_prob)
  return jnp.where((inside_HxW & erase)[:, :, None], fill[None, None], image_HxWx3)


def distort_images(
  key: Key,
  images: UInt8[Array | np.ndarray, "B H W 3"],
  *,
  flip_prob: ScalarLike,
  padding: int,
  erase_prob: ScalarLike,
  erase_area: tuple[float, float],
  erase_aspect: tuple[float, float],
  pixel_statistics: PixelStatistics,
) -> Float[Array, "B H W 3"]:
  """The image half of the distorted view, normalised.

  Args:
    key: random key.
    images: RGB.
    flip_prob: probability of mirroring left and right.
    padding: black pixels around the image before the random crop back to (H, W).
    erase_prob: probability of erasing a rectangle after normalisation.
    erase_area: smallest and largest erased share of the image's area.
    erase_aspect: smallest and largest height / width of the rectangle, drawn log-uniformly.
    pixel_statistics: normalise the images; erased rectangles have their mean.
  """
  shift_keys, erase_keys = jax.random.split(key, (2, images.shape[0]))
  shift = lambda key, image: _flip_and_shift(key, image, flip_prob, padding)
  fill = pixel_statistics.fill()
  erase = lambda key, image: _erase(key, image, erase_prob, erase_area, erase_aspect, fill)
  shifted = normalize_pixels(jax.vmap(shift)(shift_keys, images), pixel_statistics)
  return jax.vmap(erase)(erase_keys, shifted)


def mask_tokens(
  key: Key,
  tokens: Int[Array | np.ndarray, "B L"],
  *,
  masking: Masking,
  ratio: ScalarLike,
  mask_first: bool,
) -> Int[Array, "B L"]:
  """The text half of the distorted view: words become the mask token.

  Args:
    key: random key.
    tokens: token ids.
    masking: which ids are words, and the mask.
    ratio: probability of masking a word, independently of the others.
    mask_first: always mask the first word (as the released code does, by a slip).
  """
  chosen = jax.random.bernoulli(key, ratio, tokens.shape)
  if mask_first:
    chosen |= (jnp.arange(tokens.shape[1]) == masking.first_word)[None, :]
  is_word = (tokens >= masking.first_id) & (tokens < masking.end_id)
  return jnp.where(chosen & is_word, masking.mask_id, tokens)


def num_kept_patches(num_patches: int, drop_ratio: float) -> int:
  """How many of an image's patches are read if this share is left out: at least one."""
  return max(1, round(num_patches * (1 - drop_ratio)))


def kept_patches(
  key: Key, num_images: int, num_patches: int, drop_ratio: float
) -> Int[Array, "B Z"] | None:
  """Which Z patches of each image the tower reads; None means all.

  As in FLIP (arXiv 2212.00794), every image loses other patches, and all images equally many.

  Args:
    key: random key.
    num_images: B.
    num_patches: of an image, all of them.
    drop_ratio: share of the patches to leave out.
  """
  if not drop_ratio:
    return None
  num_kept = num_kept_patches(num_patches, drop_ratio)
  return jax.lax.top_k(jax.random.uniform(key, (num_images, num_patches)), num_kept)[1]
