"""The released recipe as keyword arguments, for functions that have no defaults of their own."""

from typing import Any

import optax

from dgia_jax import config
from dgia_jax.method import augment, optimizer
from dgia_jax.models import pixels

_BASE = config.base()
AUGMENT = {
  name: _BASE.augment[name]
  for name in ("flip_prob", "padding", "erase_prob", "erase_area", "erase_aspect")
}
MASKING = {"ratio": _BASE.augment.mask_ratio, "mask_first": _BASE.augment.mask_first}
OPTIMIZER = {
  "base": _BASE.optimizer.learning_rate,
  **{name: value for name, value in _BASE.optimizer.items() if name != "learning_rate"},
}


def create_optimizer(**options: Any) -> optax.GradientTransformation:
  """The released optimiser with some options replaced."""
  return optimizer.create(**OPTIMIZER | options)


def distort_images(key, images, **options):
  """The released distortion with some options replaced."""
  options = {"pixel_statistics": pixels.CLIP} | options
  return augment.distort_images(key, images, **AUGMENT | options)


def mask_tokens(key, tokens, **options):
  """The released masking with some options replaced."""
  return augment.mask_tokens(key, tokens, **MASKING | options)
