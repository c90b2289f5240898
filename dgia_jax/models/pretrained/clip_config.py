"""config.json and preprocessor_config.json of Hugging Face CLIP folders: read, checked, written.

transformers' CLIP takes square images, so `vision_config.image_size` is one side length. For
oblong images it is the longer side, and a field of ours, `trained_image_size`, holds both.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from dgia_jax import files, user_files
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, pixels
from dgia_jax.models.pretrained import params as params_lib

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
_TRAINED_SIZE = "trained_image_size"  # [height, width] in pixels
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers; the second is CLIP's
# The only values of these fields that the models of this package support.
_FIXED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
# The normalisation of pixels that they expect; transformers has the same defaults.
_NORMALISATION = {
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "image_mean": [float(str(value)) for value in pixels.PIXEL_MEAN],
  "image_std": [float(str(value)) for value in pixels.PIXEL_STD],
}
_SECTIONS = ("vision_config", "text_config")
# Only these fields are passed to transformers. Others could do harm: for `num_labels` it creates a
# table of that size.
_SIZE_LIMITS = {
  "hidden_size": 2**16,
  "num_hidden_layers": 2**10,
  "num_attention_heads": 2**10,
  "image_size": 2**14,
  "patch_size": 2**10,
  "vocab_size": 2**24,
  "max_position_embeddings": 2**16,
  "projection_dim": 2**16,
}


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """The CLIP model that a config.json describes.

  Attributes:
    size: of both towers.
    image_size: (height, width) in pixels of the images the model was trained on.
    context_length: longest text in tokens.
    vocab_size: number of token ids.
    has_trained_size: whether `image_size` is our own field, `trained_image_size`.
    unsupported: one short text for each field whose value the models of this package lack.
  """

  size: dual_encoder.Size
  image_size: tuple[int, int]
  context_length: int
  vocab_size: int
  has_trained_size: bool = False
  unsupported: tuple[str, ...] = ()

  @property
  def grid(self) -> tuple[int, int]:
    """Patches down and across an image."""
    height, width = self.image_size
    return height // self.size.patch_size, width // self.size.patch_size


def read(folder: pathlib.Path | str) -> ClipConfig:
  """Reads the config.json of a folder; fields it leaves out have transformers' defaults.

  Raises:
    UserError: the file is missing or damaged, or it does not describe a CLIP model.
  """
  path = pathlib.Path(folder) / CONFIG_FILE
  content = user_files.read_json(path, "pretrained")
  if content.get("model_type") != "clip":
    raise UserError(
      f"{path}: model_type is {content.get('model_type')!r}, not 'clip'; give a Hugging Face CLIP"
      " folder"
    )
  sections = {name: _section(content, name, path) for name in _SECTIONS}
  known = {name: value for name, value in content.items() if name in _SIZE_LIMITS}
  try:
    with _quiet_transformers() as transformers:
      config = transformers.CLIPConfig.from_dict({**known, **sections})
  except Exception as error:  # its checks raise many classes
    reason = " ".join(str(error).split())
    raise UserError(f"{path}: no valid config of a CLIP model ({reason})") from error
  vision, text = config.vision_config, config.text_config

  def size(section: Any, field: str) -> int:
    value, limit = getattr(section, field), _SIZE_LIMITS[field]
    if type(value) is not int or not 1 <= value <= limit:
      raise UserError(f"{path}: {field} is {value!r}, not an integer from 1 to {limit}")
    return value

  def tower(name: str, section: Any) -> dual_encoder.TowerSize:
    width, heads = size(section, "hidden_size"), size(section, "num_attention_heads")
    if width % heads:
      raise UserError(f"{path}: {name}.hidden_size {width} is no multiple of its {heads} heads")
    return dual_encoder.TowerSize(width, size(section, "num_hidden_layers"), heads)

  model_size = dual_encoder.Size(
    image=tower("vision_config", vision),
    text=tower("text_config", text),
    feature_width=size(config, "projection_dim"),
    patch_size=size(vision, "patch_size"),
  )
  return ClipConfig(
    size=model_size,
    image_size=_image_size(path, vision, size(vision, "image_size"), model_size.patch_size),
    context_length=size(text, "max_position_embeddings"),
    vocab_size=size(text, "vocab_size"),
    has_trained_size=hasattr(vision, _TRAINED_SIZE),
    unsupported=tuple(
      f"{name}.{field} in its config.json is {getattr(section, field)!r}, not {value!r}"
      for name, section in (("vision_config", vision), ("text_config", text))
      for field, value in _FIXED.items()
      if getattr(section, field) != value
    ),
  )


def _section(content: Mapping[str, Any], name: str, path: pathlib.Path) -> dict[str, Any]:
  """The known fields of one tower; older files hold them in `vision_config_dict` too."""
  fields: dict[str, Any] = {}
  for key in (name, f"{name}_dict"):
    section = content.get(key)
    if section is not None and not isinstance(section, dict):
      raise UserError(f"{path}: {key} is not a JSON object")
    fields |= section or {}
  known = (*_SIZE_LIMITS, *_FIXED, _TRAINED_SIZE)
  return {field: value for field, value in fields.items() if field in known}


def _image_size(path: pathlib.Path, vision: Any, side: int, patch: int) -> tuple[int, int]:
  """Both sides of the trained images, from our field if the file has it."""
  sides = getattr(vision, _TRAINED_SIZE, [side, side])
  if (
    not isinstance(sides, list)
    or len(sides) != 2
    or any(type(value) is not int or value < patch for value in sides)
    or max(sides) != side
  ):
    raise UserError(
      f"{path}: vision_config.{_TRAINED_SIZE} {sides!r} must be [height, width] with image_size"
      f" {side} as the longer side, and neither below the patch size {patch}"
    )
  return sides[0], sides[1]


def check_preprocessor(folder: pathlib.Path, clip: ClipConfig) -> None:
  """Compares preprocessor_config.json, if the folder has one, with how images are prepared here.

  A square image size that differs from config.json is only logged: the weights remain usable.

  Raises:
    UserError: the file is damaged, normalises pixels differently, or contradicts
      config.json on the size of oblong images.
  """
  path = folder / PREPROCESSOR_FILE
  if not path.exists():
    return
  content = user_files.read_json(path, "pretrained")
  for field, needed in _NORMALISATION.items():
    value = content.get(field)
    if value is not None and not _close(value, needed):
      raise UserError(
        f"{path}: {field} is {value!r}, and the models here need CLIP's {needed}; weights that were"
        " trained with another normalisation are not supported"
      )
  crop = content.get("do_center_crop", True) and content.get("crop_size")
  size = crop or content.get("size")
  sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
  if None not in sides and sides != clip.image_size:
    text = f"{path}: images are {sides[0]!r} x {sides[1]!r}, and {clip.image_size} in {CONFIG_FILE}"
    if clip.has_trained_size or sides[0] != sides[1]:
      raise UserError(f"{text}; correct the file that is wrong")
    logging.warning("%s", text)


def _close(value: Any, needed: float | list[float] | bool) -> bool:
  """Whether a value of a JSON file equals the needed one, up to rounding."""
  try:
    return bool(np.allclose(np.asarray(value, np.float64), needed, rtol=0, atol=1e-3))
  except (TypeError, ValueError, OverflowError):
    return False


def write(
  folder: pathlib.Path, params: Mapping[str, Any], image_size: tuple[int, int], temperature: float
) -> None:
  """Writes config.json for these parameters.

  Args:
    folder: exists.
    params: nested dict of arrays.
    image_size: (height, width) in pixels.
    temperature: tau, the divisor of the cosines; becomes CLIP's logit scale.
  """
  flat = params_lib.flatten(params)
  vocab_size, _ = flat["text/token_embedding"].shape
  context_length, _ = flat["text/position_embedding"].shape
  feature_width = flat["image/projection"].shape[1]

  def tower(name: str) -> dict[str, Any]:
    stacked, width, inner_width = flat[f"{name}/blocks/mlp/up/kernel"].shape
    return {
      "hidden_size": width,
      "intermediate_size": inner_width,
      "num_hidden_layers": stacked + 1,
      "num_attention_heads": flat[f"{name}/blocks/attention/qkv/kernel"].shape[3],
      "projection_dim": feature_width,
      **_FIXED,
    }

  content = {
    "architectures": ["CLIPModel"],
    "projection_dim": feature_width,
    "logit_scale_init_value": -math.log(temperature),
    "text_config": {
      **tower("text"),
      "vocab_size": vocab_size,
      "max_position_embeddings": context_length,
      "pad_token_id": 0,
      "bos_token_id": vocab_size - 2,
      "eos_token_id": vocab_size - 1,
    },
    "vision_config": {
      **tower("image"),
      "num_channels": 3,
      "patch_size": flat["image/patch_embedding"].shape[0],
      "image_size": max(image_size),
      _TRAINED_SIZE: list(image_size),
    },
  }
  with _quiet_transformers() as transformers:
    config = transformers.CLIPConfig(**content)
  files.write_text(folder / CONFIG_FILE, config.to_json_string())


def read_resize(folder: pathlib.Path | str) -> str:
  """Reads the filter that a folder's images are resized with: "bilinear" or "bicubic".

  Raises:
    UserError: preprocessor_config.json is damaged, or names another filter.
  """
  path = pathlib.Path(folder) / PREPROCESSOR_FILE
  number = user_files.read_json(path, "pretrained").get("resample", 3) if path.exists() else 3
  for name, known in _RESAMPLE.items():
    if number == known:
      return name
  raise UserError(f"{path}: resample={number!r} is neither 2 (bilinear) nor 3 (bicubic)")


def write_preprocessor(folder: pathlib.Path, image_size: tuple[int, int], resize: str) -> None:
  """Writes preprocessor_config.json: resizing to (height, width), then CLIP's normalisation."""
  size = {"height": image_size[0], "width": image_size[1]}
  with _quiet_transformers() as transformers:
    # The default normalisation is CLIP's.
    processor = transformers.CLIPImageProcessor(
      size=size, crop_size=size, resample=_RESAMPLE[resize], do_center_crop=False
    )
  files.write_text(folder / PREPROCESSOR_FILE, processor.to_json_string())


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[types.ModuleType]:
  """Yields transformers without its advice: on missing PyTorch, on fields that we leave out.

  It is imported on use, because that takes seconds, and the models must work without it.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  verbosity = transformers.logging.get_verbosity()
  transformers.logging.set_verbosity_error()
  try:
    yield transformers
  finally:
    transformers.logging.set_verbosity(verbosity)
