"""The two views of a pair in PyTorch (paper section 3.4): image by image, as is usual."""

import math

import torch
from ml_collections import ConfigDict

from dgia_jax.method.augment import ERASE_ATTEMPTS
from dgia_jax.models import pixels


def normalize(images: torch.Tensor) -> torch.Tensor:
  """(..., 3, H, W) uint8 -> float32, CLIP's mean removed and divided by its deviation."""
  column = lambda numbers: torch.tensor(numbers).to(images.device)[:, None, None]
  return (images.float() / 255 - column(pixels.CLIP.mean)) / column(pixels.CLIP.std)


def distort_image(image: torch.Tensor, settings: ConfigDict) -> torch.Tensor:
  """One (3, H, W) uint8 image flipped, shifted and normalised, with a rectangle erased."""
  height, width = image.shape[1:]
  if torch.rand(()) < settings.flip_prob:
    image = image.flip(2)
  image = torch.nn.functional.pad(image, (settings.padding,) * 4)
  top, left = torch.randint(0, 2 * settings.padding + 1, (2,)).tolist()
  image = normalize(image[:, top : top + height, left : left + width])
  if torch.rand(()) < settings.erase_prob:
    _erase(image, settings)
  return image


def _erase(image, settings):
  height, width = image.shape[1:]
  for _ in range(ERASE_ATTEMPTS):
    share, place = torch.rand(2).tolist(), torch.rand(2).tolist()
    low, high = settings.erase_area
    area = (low + (high - low) * share[0]) * height * width
    low, high = (math.log(aspect) for aspect in settings.erase_aspect)
    aspect = math.exp(low + (high - low) * share[1])
    box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if box_height < height and box_width < width:
      top = int(place[0] * (height - box_height + 1))
      left = int(place[1] * (width - box_width + 1))
      fill = torch.from_numpy(pixels.CLIP.fill()).to(image.device)[:, None, None]
      image[:, top : top + box_height, left : left + box_width] = fill
      return


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
  distorted = torch.stack([distort_image(image, settings) for image in images])
  pixels = torch.cat([normalize(images), distorted])
  return pixels, torch.cat([tokens, mask_tokens(tokens, mask_id, settings)])
