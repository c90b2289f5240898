"""Writes a Hugging Face CLIP folder that transformers loads.

transformers' CLIP takes square images, so its position table is a square. For oblong images the
square is chosen so that transformers' own interpolation gives exactly the trained table:

    model = transformers.CLIPModel.from_pretrained(folder)
    model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)

Oblong images need the flag; for square ones it changes nothing.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgia_jax import files as atomic_files
from dgia_jax.models.pretrained import clip_config, files, position_embedding, tensor_names
from dgia_jax.models.pretrained import params as params_lib


def write_folder(
  folder: pathlib.Path | str,
  params: Mapping[str, Any],
  *,
  image_size: tuple[int, int],
  temperature: float = 0.02,
  resize: str = "bicubic",
) -> None:
  """Writes config.json, model.safetensors and preprocessor_config.json.

  Args:
    folder: created if absent.
    params: nested dict of arrays.
    image_size: (height, width) in pixels of the model's images.
    temperature: tau, the divisor of the cosines; becomes CLIP's logit scale.
    resize: the filter that images were resized with in training, "bilinear" or "bicubic".
  """
  # Imported on use: only those who write weights need the package.
  import safetensors.numpy

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  clip_config.write(folder, params, image_size, temperature)
  clip_config.write_preprocessor(folder, image_size, resize)
  tensors = _tensors(params, image_size, temperature)
  # transformers refuses files that do not name the framework they are for.
  content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
  # safetensors' own writer creates files that only their owner can read.
  atomic_files.write_bytes(folder / files.WEIGHTS_FILE, content)


def _tensors(
  params: Mapping[str, Any], image_size: tuple[int, int], temperature: float
) -> dict[str, np.ndarray]:
  """The content of model.safetensors."""
  tensors = params_lib.write_tensors(params, tensor_names.HUGGING_FACE)
  tensors["logit_scale"] = np.array(-math.log(temperature), np.float32)
  if image_size[0] != image_size[1]:
    (name,) = tensor_names.HUGGING_FACE[tensor_names.POSITION_EMBEDDING].names
    patch = params_lib.flatten(params)["image/patch_embedding"].shape[0]
    grid = (image_size[0] // patch, image_size[1] // patch)
    tensors[name] = position_embedding.to_square(tensors[name], grid)
  return tensors
