"""PyTorch tensors as images, without PyTorch."""

from typing import Any

import numpy as np

from dgia_jax.errors import UserError


def is_tensor(image: Any) -> bool:
  """Whether this is a PyTorch tensor; PyTorch need not be installed."""
  return type(image).__module__.split(".")[0] == "torch" and hasattr(image, "detach")


def as_array(image: Any) -> np.ndarray:
  """A tensor (3, height, width), uint8 or floats from 0 to 1, as uint8 (height, width, 3)."""
  pixels = image.detach().cpu().numpy()
  if pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.size:
    raise UserError(f"an image tensor has the shape {pixels.shape}: give (3, height, width)")
  if np.issubdtype(pixels.dtype, np.floating):
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN as well
      raise UserError("an image tensor of floats has values outside 0 to 1: do not normalise it")
    pixels = np.rint(pixels * 255).astype(np.uint8)
  return np.ascontiguousarray(pixels.transpose(1, 2, 0))
