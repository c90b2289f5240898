"""open_clip_config.json: the config of models as open_clip publishes them, read and checked."""

import pathlib
from collections.abc import Mapping
from typing import Any

from dgia_jax import user_files
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, families
from dgia_jax.models.families import Family
from dgia_jax.models.pretrained import preprocessor_config
from dgia_jax.models.pretrained.checkpoint_config import CheckpointConfig

FILE = "open_clip_config.json"
# Fields of both towers that are read below.
_READ = {
  "image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "context_length",
  "vocab_size", "heads",
}  # fmt: skip
# Fields that change nothing here: of training, of modules that are switched off, of the tokenizer.
_WITHOUT_EFFECT = {
  "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "image_seq_len",
  "timm_model_pretrained", "timm_pool", "timm_proj", "timm_drop", "hf_tokenizer_name",
  "tokenizer_kwargs", "tokenizer_mode", "pad_id", "variable_text", "hf_model_pretrained",
}  # fmt: skip
# Values of other fields that name what the models here do anyway; null and false do, too.
_USUAL = {
  "pool_type": ("tok", "argmax"),
  "pos_embed_type": ("learnable",),
  "proj_type": ("linear",),
  "text_arch": ("clip",),
}


def read(folder: pathlib.Path | str) -> CheckpointConfig:
  """Reads the open_clip_config.json of a folder.

  Raises:
    UserError: the file is missing or damaged, or it does not describe a CLIP model.
  """
  path = pathlib.Path(folder) / FILE
  content = user_files.read_json(path, "pretrained")
  model = _section(content, "model_cfg", path)
  vision, text = (_section(model, name, path) for name in ("vision_cfg", "text_cfg"))
  family = families.CLIP if model.get("quick_gelu") is True else families.OPEN_CLIP
  _check_statistics(path, content, family)

  def size(section: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = section.get(field, default)
    if type(value) is not int or not 1 <= value <= 2**24:
      raise UserError(f"{path}: {field} is {value!r}, not a positive integer")
    return value

  def mlp_width(section: Mapping[str, Any], width: int) -> int:
    ratio = section.get("mlp_ratio", 4.0)
    if type(ratio) not in (int, float) or not 0 < ratio < 1000:
      raise UserError(f"{path}: mlp_ratio is {ratio!r}, not a positive number")
    return 0 if ratio == 4 else int(width * ratio)

  problems = [
    f"{name}.{field} in its {FILE} is {value!r}, which the models here lack"
    for name, section in (("vision_cfg", vision), ("text_cfg", text))
    for field, value in section.items()
    if field not in _READ | _WITHOUT_EFFECT
    and not (value is None or value is False or value in _USUAL.get(field, ()))
  ]
  if problems:  # of another architecture, whose sizes have other names
    raise UserError(f"{path}: {'; '.join(problems)}")
  image_width, text_width = size(vision, "width", 768), size(text, "width", 512)
  head_width, heads = size(vision, "head_width", 64), size(text, "heads", 8)
  for name, width, parts in (
    ("vision_cfg", image_width, head_width),
    ("text_cfg", text_width, heads),
  ):
    if width % parts:
      raise UserError(f"{path}: {name}.width {width} does not divide into its heads")
  side, patch = size(vision, "image_size", 224), size(vision, "patch_size", 16)
  if side < patch:
    raise UserError(f"{path}: image_size {side} is below the patch size {patch}")
  return CheckpointConfig(
    size=dual_encoder.Size(
      image=dual_encoder.TowerSize(
        image_width,
        size(vision, "layers", 12),
        image_width // head_width,
        mlp_width(vision, image_width),
      ),
      text=dual_encoder.TowerSize(
        text_width, size(text, "layers", 12), heads, mlp_width(text, text_width)
      ),
      feature_width=size(model, "embed_dim"),
      patch_size=patch,
      family=family,
    ),
    image_size=(side, side),
    context_length=size(text, "context_length", 77),
    vocab_size=size(text, "vocab_size", 49408),
  )


def check_preprocessing(folder: pathlib.Path | str, family: Family) -> None:
  """Raises UserError if a folder's open_clip_config.json normalises pixels differently."""
  path = pathlib.Path(folder) / FILE
  _check_statistics(path, user_files.read_json(path, "pretrained"), family)


def _check_statistics(path: pathlib.Path, content: Mapping[str, Any], family: Family) -> None:
  preprocess = _preprocess_of(content)
  mean, std = preprocess.get("mean"), preprocess.get("std")
  preprocessor_config.check_statistics(path, mean, std, family)


def read_resize(folder: pathlib.Path | str) -> str:
  """Reads the filter that a folder's images are resized with: "bilinear" or "bicubic" (default).

  Raises:
    UserError: open_clip_config.json is missing or damaged, or names another filter.
  """
  path = pathlib.Path(folder) / FILE
  name = _preprocess_of(user_files.read_json(path, "pretrained")).get("interpolation")
  # "random" draws one of both for each image in training; open_clip evaluates with bicubic.
  resize = preprocessor_config.DEFAULT_RESIZE if name in (None, "random") else name
  if resize not in preprocessor_config.RESIZES:
    raise UserError(f"{path}: interpolation={name!r} is neither bilinear nor bicubic")
  return resize


def _preprocess_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
  preprocess = content.get("preprocess_cfg")
  return preprocess if isinstance(preprocess, dict) else {}


def _section(content: Mapping[str, Any], name: str, path: pathlib.Path) -> dict[str, Any]:
  section = content.get(name)
  if not isinstance(section, dict):
    raise UserError(f"{path}: {name} is not a JSON object")
  return section
