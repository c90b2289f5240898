"""The two views of a pair in PyTorch (paper section 3.4), the whole batch at once."""

import math

import torch
from ml_collections import ConfigDict

from dgia_jax.method.augment import ERASE_ATTEMPTS
from dgia_jax.models import pixels


def normalize(images: torch.Tensor) -> torch.Tensor:
  """(..., 3, H, W) uint8 -> float32, CLIP's mean removed and divided by its deviation."""
  column = lambda numbers: torch.tensor(numbers, device=images.device)[:, None, None]
  return (images.float() / 255 - column(pixels.CLIP.mean)) / column(pixels.CLIP.std)


def distort(images: torch.Tensor, settings: ConfigDict) -> torch.Tensor:
  """(B, 3, H, W) uint8 images flipped, shifted and normalised, with a rectangle erased in each."""
  batch, device = len(images), images.device
  flipped = torch.rand(batch, 1, 1, 1, device=device) < settings.flip_prob
  shifted = _shift(torch.where(flipped, images.flip(3), images), settings.padding)
  fill = torch.tensor(pixels.CLIP.fill(), device=device)[:, None, None]
  return torch.where(_erased(images, settings), fill, normalize(shifted))


def _shift(images, padding):
  """A window of each padded image, at a random place."""
  (batch, channels, height, width), device = images.shape, images.device
  padded = torch.nn.functional.pad(images, (padding,) * 4)
  top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1), device=device)
  rows = (top + torch.arange(height, device=device))[:, None, :, None]
  columns = (left + torch.arange(width, device=device))[:, None, None, :]
  image = torch.arange(batch, device=device)[:, None, None, None]
  return padded[image, torch.arange(channels, device=device)[:, None, None], rows, columns]


def _erased(images, settings):
  """(B, 1, H, W): True in the rectangle that is erased, the first of several that fits."""
  (batch, _, height, width), device = images.shape, images.device
  random = lambda: torch.rand(batch, ERASE_ATTEMPTS, device=device)
  between = lambda low, high: low + (high - low) * random()
  area = between(*settings.erase_area) * height * width
  aspect = between(*map(math.log, settings.erase_aspect)).exp()
  box_height, box_width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
  fits = (box_height < height) & (box_width < width)
  first = fits.int().argmax(dim=1, keepdim=True)
  chosen = fits.any(dim=1) & (torch.rand(batch, device=device) < settings.erase_prob)

  def inside(size, box):
    start = (random() * (size - box + 1)).floor()
    start, box = (numbers.gather(1, first) for numbers in (start, box))
    places = torch.arange(size, device=device)
    return (places >= start) & (places < start + box)

  rows, columns = inside(height, box_height), inside(width, box_width)
  return (chosen[:, None, None] & rows[:, :, None] & columns[:, None, :])[:, None]


def mask_tokens(tokens: torch.Tensor, mask_id: int, settings: ConfigDict) -> torch.Tensor:
  """(B, L) token ids with words replaced by the mask token."""
  chosen = torch.rand(tokens.shape, device=tokens.device) < settings.mask_ratio
  if settings.mask_first:
    chosen[:, 1] = True
  return torch.where(chosen & (tokens > 0) & (tokens < mask_id), mask_id, tokens)


def two_views(
  images: torch.Tensor, tokens: torch.Tensor, mask_id: int, settings: ConfigDict
) -> tuple[torch.Tensor, torch.Tensor]:
  """Pixels (2B, 3, H, W) and tokens (2B, L): the clean views, then the distorted ones."""
  both_pixels = torch.cat([normalize(images), distort(images, settings)])
  return both_pixels, torch.cat([tokens, mask_tokens(tokens, mask_id, settings)])
