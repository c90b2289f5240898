"""The clean and the distorted view of every pair, and their features (section 3.4)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from dgia_jax.method import augment, random_streams
from dgia_jax.method.mining import FeaturePair
from dgia_jax.models.pixels import PixelStatistics, normalize_pixels

# (params, pixels, tokens) -> image and text features; may be given the patches to read, too.
Encode = Callable[..., tuple[jax.Array, jax.Array]]


def two_views(
  key: Array,
  images: UInt8[Array, "B H W 3"],
  tokens: Int[Array, "B L"],
  *,
  settings: Any,
  masking: augment.Masking,
  pixel_statistics: PixelStatistics,
  with_distorted: bool,
) -> tuple[Float[Array, "B V H W 3"], Int[Array, "B V L"]]:
  """The views of a batch: V = 2, or V = 1 without the distorted one.

  The clean view is the stored pair, unless the settings change it lightly, too.

  Args:
    key: random key of the step.
    images, tokens: of the batch.
    settings: `config.augment`.
    masking: which ids are words, and the mask.
    pixel_statistics: normalise the images.
    with_distorted: whether to make the distorted view as well.
  """
  distort = functools.partial(
    augment.distort_images,
    erase_area=settings.erase_area,
    erase_aspect=settings.erase_aspect,
    pixel_statistics=pixel_statistics,
  )
  mask_words = functools.partial(augment.mask_tokens, masking=masking)
  clean_key = random_streams.stream(key, random_streams.CLEAN_VIEW)
  image_key, text_key = jax.random.split(clean_key)
  clean_pixels, clean_tokens = normalize_pixels(images, pixel_statistics), tokens
  if settings.clean_flip_prob or settings.clean_padding:
    clean_pixels = distort(
      image_key,
      images,
      flip_prob=settings.clean_flip_prob,
      padding=settings.clean_padding,
      erase_prob=0.0,
    )
  if settings.clean_mask_ratio:
    clean_tokens = mask_words(text_key, tokens, ratio=settings.clean_mask_ratio, mask_first=False)
  if not with_distorted:
    return clean_pixels[:, None], clean_tokens[:, None]
  distorted_pixels = distort(
    random_streams.stream(key, random_streams.DISTORTED_IMAGE),
    images,
    flip_prob=settings.flip_prob,
    padding=settings.padding,
    erase_prob=settings.erase_prob,
  )
  distorted_tokens = mask_words(
    random_streams.stream(key, random_streams.DISTORTED_TEXT),
    tokens,
    ratio=settings.mask_ratio,
    mask_first=settings.mask_first,
  )
  # Both views of a pair are neighbours in memory, so that each device keeps its own pairs.
  return (
    jnp.stack([clean_pixels, distorted_pixels], axis=1),
    jnp.stack([clean_tokens, distorted_tokens], axis=1),
  )


def encode_views(
  encode: Encode,
  params: dict,
  pixels_BxVxHxWx3: Float[Array, "B V H W 3"],
  tokens_BxVxL: Int[Array, "B V L"],
  kept_BxZ: Int[Array, "B Z"] | None = None,
  distorted_needed: Bool[Array, ""] | None = None,
) -> list[FeaturePair]:
  """Features of every view, in one pass of each tower over all views.

  Views of different sizes, or of which one may not be needed, are encoded one after the other.

  Args:
    encode: (params, pixels, tokens) -> image and text features.
    params: parameters.
    pixels_BxVxHxWx3, tokens_BxVxL: from `two_views`.
    kept_BxZ: the patches that are read of the distorted view, from `augment.kept_patches`.
    distorted_needed: whether the distorted view's features will be used; None means yes. Where they
      are not, they are not computed, and the clean view's features stand in their place.

  Returns:
    The features of the clean view, then those of the distorted one, if V = 2.
  """
  size, num_views = tokens_BxVxL.shape[:2]
  if num_views == 1 or (kept_BxZ is None and distorted_needed is None):
    flat = lambda x: x.reshape(size * num_views, *x.shape[2:])
    image, text = encode(params, flat(pixels_BxVxHxWx3), flat(tokens_BxVxL))
    of_view = lambda x, v: x.reshape(size, num_views, -1)[:, v]
    return [FeaturePair(of_view(image, v), of_view(text, v)) for v in range(num_views)]

  def encode_view(v: int, *kept: Array) -> FeaturePair:
    return FeaturePair(*encode(params, pixels_BxVxHxWx3[:, v], tokens_BxVxL[:, v], *kept))

  clean = encode_view(0)
  encode_distorted = lambda: encode_view(1) if kept_BxZ is None else encode_view(1, kept_BxZ)
  if distorted_needed is None:
    return [clean, encode_distorted()]
  return [clean, jax.lax.cond(distorted_needed, encode_distorted, lambda: clean)]
