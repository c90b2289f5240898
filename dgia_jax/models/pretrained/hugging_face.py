"""Writes a Hugging Face folder that transformers loads: CLIPModel, or SiglipModel.

transformers' models take square images, so their position table is a square. For oblong images the
square is chosen so that transformers' own interpolation gives exactly the trained table:

    model = transformers.AutoModel.from_pretrained(folder)
    model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)

Oblong images need the flag; for square ones it changes nothing.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgia_jax import files
from dgia_jax.errors import UserError
from dgia_jax.models import families
from dgia_jax.models.families import Family
from dgia_jax.models.pretrained import (
  checkpoint_files,
  config_json,
  position_embedding,
  preprocessor_config,
  tensor_names,
)
from dgia_jax.models.pretrained import params as params_lib

DTYPES = ("float32", "float16")  # half precision halves the file; weights are read as float32


def write_folder(
  folder: pathlib.Path | str,
  params: Mapping[str, Any],
  *,
  image_size: tuple[int, int],
  family: Family = families.CLIP,
  temperature: float = 0.02,
  resize: str = "bicubic",
  dtype: str = "float32",
) -> None:
  """Writes config.json, model.safetensors and preprocessor_config.json.

  Args:
    folder: created if absent.
    params: nested dict of arrays.
    image_size: (height, width) in pixels of the model's images.
    family: of the model.
    temperature: tau, the divisor of the cosines; becomes CLIP's logit scale.
    resize: the filter that images were resized with in training, "bilinear" or "bicubic".
    dtype: of the tensors in the file, one of `DTYPES`.

  Raises:
    UserError: a weight is too large for `dtype`; nothing is written.
  """
  # Imported on use: only those who write weights need the package.
  import safetensors.numpy

  folder = pathlib.Path(folder)
  tensors = _tensors(params, image_size, temperature, family)
  tensors = {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}
  # transformers refuses files that do not name the framework they are for.
  content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
  folder.mkdir(parents=True, exist_ok=True)
  config_json.write(folder, params, image_size, temperature, family, dtype)
  preprocessor_config.write(folder, image_size, resize, family)
  # safetensors' own writer creates files that only their owner can read.
  files.write_bytes(folder / checkpoint_files.WEIGHTS_FILE, content)


def _cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
  """A tensor in another dtype; raises UserError if it cannot hold the values."""
  with np.errstate(over="ignore"):
    cast = tensor.astype(dtype)
  if not np.isfinite(cast).all():
    raise UserError(f"{name} has values that {dtype} cannot hold; write the weights in float32")
  return cast


def _tensors(
  params: Mapping[str, Any], image_size: tuple[int, int], temperature: float, family: Family
) -> dict[str, np.ndarray]:
  """The content of model.safetensors."""
  table = tensor_names.SIGLIP if family.is_siglip else tensor_names.HUGGING_FACE
  tensors = params_lib.write_tensors(params, table)
  scale = np.array(-math.log(temperature), np.float32)
  tensors["logit_scale"] = scale[None] if family.is_siglip else scale
  if family.is_siglip:
    tensors["logit_bias"] = np.zeros(1, np.float32)  # of its sigmoid loss; ours has none
  if image_size[0] != image_size[1]:
    (name,) = table[tensor_names.POSITION_EMBEDDING].names
    patch = params_lib.flatten(params)["image/patch_embedding"].shape[0]
    grid = (image_size[0] // patch, image_size[1] // patch)
    tensors[name] = position_embedding.to_square(tensors[name], grid)
  return tensors
