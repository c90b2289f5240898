"""config.json of Hugging Face folders with a CLIP or SigLIP model: read, checked, written.

transformers' models take square images, so `vision_config.image_size` is one side length. For
oblong images it is the longer side, and a field of ours, `trained_image_size`, holds both.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from dgia_jax import files, user_files
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, families
from dgia_jax.models.families import Family
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained.checkpoint_config import CheckpointConfig
from dgia_jax.quiet_transformers import quiet_transformers

FILE = "config.json"
_TRAINED_SIZE = "trained_image_size"  # [height, width] in pixels
_SECTIONS = ("vision_config", "text_config")
# transformers' names of our activations.
_HIDDEN_ACT = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
# Only these fields are passed to transformers. Others could do harm: for `num_labels` it creates a
# table of that size.
_SIZE_LIMITS = {
  "hidden_size": 2**16,
  "intermediate_size": 2**18,
  "num_hidden_layers": 2**10,
  "num_attention_heads": 2**10,
  "image_size": 2**14,
  "patch_size": 2**10,
  "vocab_size": 2**24,
  "max_position_embeddings": 2**16,
  "projection_dim": 2**16,  # CLIP's
  "projection_size": 2**16,  # SigLIP's, in its text_config
}
_CHOICES = ("hidden_act", "layer_norm_eps", "vision_use_head")


def read(folder: pathlib.Path | str) -> CheckpointConfig:
  """Reads the config.json of a folder; fields it leaves out have transformers' defaults.

  Raises:
    UserError: the file is missing or damaged, or it does not describe a CLIP or SigLIP model.
  """
  path = pathlib.Path(folder) / FILE
  content = user_files.read_json(path, "pretrained")
  kind = content.get("model_type")
  if kind not in ("clip", "siglip"):
    raise UserError(
      f"{path}: model_type is {kind!r}, not 'clip' or 'siglip'; give a Hugging Face folder of such"
      " a model" + (" (SigLIP 2: one of those for a fixed image size)" if kind == "siglip2" else "")
    )
  is_siglip = kind == "siglip"
  sections = {name: _section(content, name, path) for name in _SECTIONS}
  known = {name: value for name, value in content.items() if name in _SIZE_LIMITS}
  try:
    with quiet_transformers() as transformers:
      create = transformers.SiglipConfig if is_siglip else transformers.CLIPConfig
      config = create.from_dict({**known, **sections})
  except Exception as error:  # its checks raise many classes
    reason = " ".join(str(error).split())
    name = "SigLIP" if is_siglip else "CLIP"
    raise UserError(f"{path}: no valid config of a {name} model ({reason})") from error
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
    mlp_width = size(section, "intermediate_size")
    return dual_encoder.TowerSize(
      width, size(section, "num_hidden_layers"), heads, 0 if mlp_width == 4 * width else mlp_width
    )

  family = _family(is_siglip, vision)
  model_size = dual_encoder.Size(
    image=tower("vision_config", vision),
    text=tower("text_config", text),
    feature_width=size(text, "projection_size") if is_siglip else size(config, "projection_dim"),
    patch_size=size(vision, "patch_size"),
    family=family,
  )
  return CheckpointConfig(
    size=model_size,
    image_size=_image_size(path, vision, size(vision, "image_size"), model_size.patch_size),
    context_length=size(text, "max_position_embeddings"),
    vocab_size=size(text, "vocab_size"),
    has_trained_size=hasattr(vision, _TRAINED_SIZE),
    unsupported=tuple(_unsupported(family, vision, text)),
  )


def _family(is_siglip: bool, vision: Any) -> Family:
  """The family with the activation of the image tower, or the first of this layout."""
  candidates = [family for family in families.FAMILIES if family.is_siglip == is_siglip]
  for family in candidates:
    if _HIDDEN_ACT[family.activation] == vision.hidden_act:
      return family
  return candidates[0]


def _unsupported(family: Family, vision: Any, text: Any) -> list[str]:
  """Fields with values that the models of the family lack."""
  problems = []
  for name, section in (("vision_config", vision), ("text_config", text)):
    for field, needed in _choices(family).items():
      value = getattr(section, field)
      if value != needed:
        problems.append(f"{name}.{field} in its config.json is {value!r}, not {needed!r}")
  if family.is_siglip and vision.vision_use_head is not True:
    problems.append(f"vision_config.vision_use_head is {vision.vision_use_head!r}, not True")
  if family.is_siglip and vision.hidden_size != text.projection_size:
    problems.append(
      f"its image features have {vision.hidden_size} numbers, its text features"
      f" {text.projection_size}"
    )
  return problems


def _choices(family: Family) -> dict[str, Any]:
  """transformers' fields of the choices that a family makes for both towers."""
  return {
    "hidden_act": _HIDDEN_ACT[family.activation],
    "layer_norm_eps": family.layer_norm_epsilon,
  }


def _section(content: Mapping[str, Any], name: str, path: pathlib.Path) -> dict[str, Any]:
  """The known fields of one tower; older files hold them in `vision_config_dict` too."""
  fields: dict[str, Any] = {}
  for key in (name, f"{name}_dict"):
    section = content.get(key)
    if section is not None and not isinstance(section, dict):
      raise UserError(f"{path}: {key} is not a JSON object")
    fields |= section or {}
  known = (*_SIZE_LIMITS, *_CHOICES, _TRAINED_SIZE)
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


def write(
  folder: pathlib.Path,
  params: Mapping[str, Any],
  image_size: tuple[int, int],
  temperature: float,
  family: Family,
  dtype: str = "float32",
) -> None:
  """Writes config.json for these parameters.

  Args:
    folder: exists.
    params: nested dict of arrays.
    image_size: (height, width) in pixels.
    temperature: tau, the divisor of the cosines; becomes CLIP's logit scale.
    family: of the model.
    dtype: of the tensors in the file.
  """
  flat = params_lib.flatten(params)
  vocab_size, _ = flat["text/token_embedding"].shape
  context_length, _ = flat["text/position_embedding"].shape
  size = params_lib.size_of(flat, family)

  def tower(size: dual_encoder.TowerSize) -> dict[str, Any]:
    return {
      "hidden_size": size.width,
      "intermediate_size": size.mlp_width or 4 * size.width,
      "num_hidden_layers": size.depth,
      "num_attention_heads": size.heads,
      **_choices(family),
    }

  text = {
    **tower(size.text),
    "vocab_size": vocab_size,
    "max_position_embeddings": context_length,
  }
  vision = {
    **tower(size.image),
    "num_channels": 3,
    "patch_size": size.patch_size,
    "image_size": max(image_size),
    _TRAINED_SIZE: list(image_size),
  }
  if family.is_siglip:
    # Its text tower looks for no special token.
    text |= {
      "projection_size": size.feature_width,
      "pad_token_id": None,
      "bos_token_id": None,
      "eos_token_id": None,
    }
    content: dict[str, Any] = {"architectures": ["SiglipModel"]}
  else:
    special = {"pad_token_id": 0, "bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}
    text |= {"projection_dim": size.feature_width, **special}
    vision |= {"projection_dim": size.feature_width}
    content = {
      "architectures": ["CLIPModel"],
      "projection_dim": size.feature_width,
      "logit_scale_init_value": -math.log(temperature),
    }
  if dtype != "float32":
    content["dtype"] = dtype
  with quiet_transformers() as transformers:
    create = transformers.SiglipConfig if family.is_siglip else transformers.CLIPConfig
    written = create(**content, text_config=text, vision_config=vision).to_json_string()
  files.write_text(folder / FILE, written)
