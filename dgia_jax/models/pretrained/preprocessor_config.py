"""preprocessor_config.json of Hugging Face folders, how images are prepared: checked, written."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from dgia_jax import files, user_files
from dgia_jax.errors import UserError
from dgia_jax.models.families import Family
from dgia_jax.models.pixels import PixelStatistics
from dgia_jax.models.pretrained.checkpoint_config import CheckpointConfig
from dgia_jax.quiet_transformers import quiet_transformers

FILE = "preprocessor_config.json"
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
RESIZES = tuple(_RESAMPLE)
DEFAULT_RESIZE = "bicubic"  # CLIP's


def check(folder: pathlib.Path, stored: CheckpointConfig) -> None:
  """Compares a folder's file with how images are prepared here.

  A square image size that differs from config.json is only logged: the weights remain usable.

  Raises:
    UserError: the file is damaged, normalises pixels differently, or contradicts
      config.json on the size of oblong images.
  """
  path = folder / FILE
  content = user_files.read_json(path, "pretrained")
  family = stored.size.family
  _check_values(path, content, _normalisation(family.pixels), family)
  crop = content.get("do_center_crop", True) and content.get("crop_size")
  size = crop or content.get("size")
  sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
  if None not in sides and sides != stored.image_size:
    text = f"{path}: images are {sides[0]!r} x {sides[1]!r}, and {stored.image_size} in config.json"
    if stored.has_trained_size or sides[0] != sides[1]:
      raise UserError(f"{text}; correct the file that is wrong")
    logging.warning("%s", text)


def check_statistics(path: pathlib.Path, mean: Any, std: Any, family: Family) -> None:
  """Raises UserError if the mean or deviation of pixels, in a file, is not that of the family."""
  needed = {"mean": list(family.pixels.mean), "std": list(family.pixels.std)}
  _check_values(path, {"mean": mean, "std": std}, needed, family)


def _check_values(
  path: pathlib.Path, content: Mapping[str, Any], needed: Mapping[str, Any], family: Family
) -> None:
  """Raises UserError if a field of a file has another value than the family needs."""
  for field, expected in needed.items():
    value = content.get(field)
    if value is not None and not _close(value, expected):
      raise UserError(
        f"{path}: {field} is {value!r}, and {family.name} models here need {expected}; weights that"
        " were trained with another normalisation are not supported"
      )


def _normalisation(statistics: PixelStatistics) -> dict[str, Any]:
  """The fields that must have these values; transformers has the same defaults."""
  return {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(statistics.mean),
    "image_std": list(statistics.std),
  }


def _close(value: Any, needed: float | list[float] | bool) -> bool:
  """Whether a value of a JSON file equals the needed one, up to rounding."""
  try:
    return bool(np.allclose(np.asarray(value, np.float64), needed, rtol=0, atol=1e-3))
  except (TypeError, ValueError, OverflowError):
    return False


def read_resize(folder: pathlib.Path | str) -> str:
  """Reads the filter that a folder's images are resized with: "bilinear" or "bicubic".

  Raises:
    UserError: preprocessor_config.json is missing or damaged, or names another filter.
  """
  path = pathlib.Path(folder) / FILE
  number = user_files.read_json(path, "pretrained").get("resample", _RESAMPLE[DEFAULT_RESIZE])
  for name, known in _RESAMPLE.items():
    if number == known:
      return name
  raise UserError(f"{path}: resample={number!r} is neither 2 (bilinear) nor 3 (bicubic)")


def write(folder: pathlib.Path, image_size: tuple[int, int], resize: str, family: Family) -> None:
  """Writes the file: resizing to (height, width), then the normalisation of the family."""
  fields = {
    "size": {"height": image_size[0], "width": image_size[1]},
    "resample": _RESAMPLE[resize],
    "image_mean": list(family.pixels.mean),
    "image_std": list(family.pixels.std),
  }
  with quiet_transformers() as transformers:
    if family.is_siglip:
      processor = transformers.SiglipImageProcessor(**fields)
    else:
      processor = transformers.CLIPImageProcessor(
        **fields, crop_size=fields["size"], do_center_crop=False
      )
  files.write_text(folder / FILE, processor.to_json_string())
