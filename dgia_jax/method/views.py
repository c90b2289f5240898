"""The clean and the distorted view of every pair, and their features (section 3.4)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from dgia_jax.method import augment
from dgia_jax.method.mining import FeaturePair
from dgia_jax.models.pixels import PixelStatistics, normalize_pixels

# (params, pixels, tokens) -> image and text features; may be given the patches to read, too.
Encode = Callable[..., tuple[jax.Array, jax.Array]]

_CLEAN = 2  # of a step's random key: the draws for the clean view


def two_views(
  key: Array,
  images: UInt8[Array, "B H W 3"],
  tokens: Int[Array, "B L"],
  *,
  settings: Any,
  masking: augment.Masking,
  pixel_statistics: PixelStatistics,
  distorted: bool,
) -> tuple[Float[Array, "B V H W 3"], Int[Array, "B V L"]]:
  """The views of a batch: V = 2, or V = 1 without the distorted one.

  The clean view is the stored pair, unless the settings change it lightly, too.

  Args:
    key: random key of the step.
    images, tokens: of the batch.
    settings: `config.augment`.
    masking: which ids are words, and the mask.
    pixel_statistics: normalise the images.
    distorted: whether to make the distorted view as well.
  """
  distort = functools.partial(
    augment.distort_images,
    erase_area=settings.erase_area,
    erase_aspect=settings.erase_aspect,
    pixel_statistics=pixel_statistics,
  )
  mask = functools.partial(augment.mask_tokens, masking=masking)
  # Not split from the key, so that the distorted view does not depend on these settings.
  clean_image_key, clean_text_key = jax.random.split(jax.random.fold_in(key, _CLEAN))
  if settings.clean_flip_prob or settings.clean_padding:
    flip_prob, padding = settings.clean_flip_prob, settings.clean_padding
    clean = distort(clean_image_key, images, flip_prob=flip_prob, padding=padding, erase_prob=0.0)
  else:
    clean = normalize_pixels(images, pixel_statistics)
  pixels, texts = [clean], [tokens]
  if settings.clean_mask_ratio:
    ratio = settings.clean_mask_ratio
    texts = [mask(clean_text_key, tokens, ratio=ratio, mask_first=False)]
  if distorted:
    image_key, text_key = jax.random.split(key)
    flip_prob, padding, erase_prob = settings.flip_prob, settings.padding, settings.erase_prob
    pixels.append(
      distort(image_key, images, flip_prob=flip_prob, padding=padding, erase_prob=erase_prob)
    )
    ratio, mask_first = settings.mask_ratio, settings.mask_first
    texts.append(mask(text_key, tokens, ratio=ratio, mask_first=mask_first))
  # Both views of a pair are neighbours in memory, so that each device keeps its own pairs.
  return jnp.stack(pixels, axis=1), jnp.stack(texts, axis=1)


def encode_views(
  encode: Encode,
  params: dict,
  pixels_BxVxHxWx3: Float[Array, "B V H W 3"],
  tokens_BxVxL: Int[Array, "B V L"],
  kept_BxZ: Int[Array, "B Z"] | None = None,
  needed: Bool[Array, ""] | None = None,
) -> list[FeaturePair]:
  """Features of every view, in one pass of each tower over all views.

  Views of different sizes, or of which one may not be needed, are encoded one after the other.

  Args:
    encode: (params, pixels, tokens) -> image and text features.
    params: parameters.
    pixels_BxVxHxWx3, tokens_BxVxL: from `two_views`.
    kept_BxZ: the patches that are read of the distorted view, from `augment.kept_patches`.
    needed: whether the distorted view's features will be used; None means yes. Where they are not,
      they are not computed, and the clean view's features stand in their place.

  Returns:
    The features of the clean view, then those of the distorted one, if V = 2.
  """
  size, num_views = tokens_BxVxL.shape[:2]
  if num_views == 2 and not (kept_BxZ is None and needed is None):
    encode_view = lambda v, *kept: FeaturePair(
      *encode(params, pixels_BxVxHxWx3[:, v], tokens_BxVxL[:, v], *kept)
    )
    kept = () if kept_BxZ is None else (kept_BxZ,)
    clean, distorted = encode_view(0), lambda: encode_view(1, *kept)
    return [
      clean,
      distorted() if needed is None else jax.lax.cond(needed, distorted, lambda: clean),
    ]
  flat = lambda x: x.reshape(size * num_views, *x.shape[2:])
  image, text = encode(params, flat(pixels_BxVxHxWx3), flat(tokens_BxVxL))
  per_view = lambda x: x.reshape(size, num_views, -1)
  return [FeaturePair(per_view(image)[:, v], per_view(text)[:, v]) for v in range(num_views)]
