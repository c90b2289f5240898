"""Hugging Face CLIP folders: what their config says, and writing one that transformers loads.

transformers' CLIP knows one side length, so its position table is a square. For oblong images the
square is chosen such that transformers' own interpolation gives exactly the trained table:

    model = transformers.CLIPModel.from_pretrained(folder)
    model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)

The flag is needed for oblong images, and changes nothing for square ones.
"""

import json
import math
import pathlib

import numpy as np

from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.models.pretrained import files as files_lib
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained import position_embedding, tensor_names

PREPROCESSOR_FILE = "preprocessor_config.json"
# A field of ours in vision_config, (height, width) in pixels; image_size is the longer side.
_TRAINED_SIZE = "trained_image_size"
_BICUBIC = 3  # Pillow's number


def trained_grid(config: dict) -> tuple[int, int] | None:
  """Patches (ny, nx) of the images a checkpoint was trained on; None without a config."""
  if not config:
    return None
  vision = config.get("vision_config", {})
  side = vision.get("image_size", 224)
  height, width = vision.get(_TRAINED_SIZE, (side, side))
  patch = vision.get("patch_size", 32)
  return height // patch, width // patch


def read_sizes(folder) -> tuple[dual_encoder.Size, tuple[int, int], int, int]:
  """What model a folder holds.

  Args:
    folder: holds config.json.

  Returns:
    Its size, (height, width) of its images in pixels, context length in tokens, vocabulary size.

  Raises:
    UserError: there is no readable config.json of a CLIP model.
  """
  path = pathlib.Path(folder) / files_lib.CONFIG_FILE
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read ({error}); give a Hugging Face CLIP folder") from error
  if config.get("model_type") != "clip":
    raise UserError(f"{path}: model_type is {config.get('model_type')!r}, not 'clip'")
  vision, text = config.get("vision_config", {}), config.get("text_config", {})

  def tower(said: dict, width: int, heads: int) -> dual_encoder.TowerSize:
    return dual_encoder.TowerSize(
      width=said.get("hidden_size", width),
      depth=said.get("num_hidden_layers", 12),
      heads=said.get("num_attention_heads", heads),
    )

  # Fields that a config.json leaves out have transformers' defaults.
  size = dual_encoder.Size(
    image=tower(vision, 768, 12),
    text=tower(text, 512, 8),
    feature_width=config.get("projection_dim", 512),
    patch_size=vision.get("patch_size", 32),
  )
  side = vision.get("image_size", 224)
  image_size = tuple(vision.get(_TRAINED_SIZE, (side, side)))
  return (
    size, image_size, text.get("max_position_embeddings", 77), text.get("vocab_size", 49408),
  )  # fmt: skip


def config_problems(config: dict, template: dict) -> list[str]:
  """Where a config differs from the model in what shapes of tensors do not show.

  Args:
    config: content of config.json; {} for OpenAI's files, whose heads are 64 wide.
    template: path -> parameter.

  Returns:
    One short text per difference.
  """
  problems = []
  if config.get("model_type", "clip") != "clip":
    problems.append(f"model_type in its config.json is {config['model_type']!r}, not 'clip'")
  # Fields that a config.json leaves out have transformers' defaults.
  for tower, section, heads in (("image", "vision_config", 12), ("text", "text_config", 8)):
    _, width, _, model_heads, _ = template[f"{tower}/blocks/attention/qkv/kernel"].shape
    said = config.get(section, {})
    heads = said.get("num_attention_heads", heads) if config else width // 64
    if heads != model_heads:
      problems.append(f"its {tower} tower has {heads} attention heads, the model {model_heads}")
    for field, needed in (("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)):
      if said.get(field, needed) != needed:
        problems.append(f"{section}.{field} in its config.json is {said[field]!r}, not {needed!r}")
  return problems


def make_config(params: dict, *, image_size: tuple[int, int], temperature: float) -> dict:
  """The content of config.json for these parameters.

  Args:
    params: nested dict of arrays.
    image_size: (height, width) in pixels.
    temperature: tau, what cosines are divided by.
  """
  flat = params_lib.flatten(params)
  vocab_size, _ = flat["text/token_embedding"].shape
  context_length, _ = flat["text/position_embedding"].shape
  patch_size = flat["image/patch_embedding"].shape[0]
  feature_width = flat["image/projection"].shape[1]

  def tower(name: str) -> dict:
    depth, width, inner_width = flat[f"{name}/blocks/mlp/up/kernel"].shape
    return {
      "hidden_size": width,
      "intermediate_size": inner_width,
      "num_hidden_layers": depth,
      "num_attention_heads": flat[f"{name}/blocks/attention/qkv/kernel"].shape[3],
      "projection_dim": feature_width,
      "hidden_act": "quick_gelu",
      "layer_norm_eps": 1e-5,
    }

  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": feature_width,
    "logit_scale_init_value": -math.log(temperature),
    "text_config": {
      **tower("text"),
      "model_type": "clip_text_model",
      "vocab_size": vocab_size,
      "max_position_embeddings": context_length,
      "pad_token_id": 0,
      "bos_token_id": vocab_size - 2,
      "eos_token_id": vocab_size - 1,
    },
    "vision_config": {
      **tower("image"),
      "model_type": "clip_vision_model",
      "num_channels": 3,
      "patch_size": patch_size,
      "image_size": max(image_size),
      _TRAINED_SIZE: list(image_size),
    },
  }


def make_tensors(
  params: dict, *, image_size: tuple[int, int], temperature: float
) -> dict[str, np.ndarray]:
  """The content of model.safetensors for these parameters: name -> float32 array."""
  tensors = params_lib.write_tensors(params, tensor_names.HUGGING_FACE)
  tensors["logit_scale"] = np.array(-math.log(temperature), np.float32)
  if image_size[0] != image_size[1]:
    (name,) = tensor_names.HUGGING_FACE[tensor_names.POSITION_EMBEDDING].names
    patch = params_lib.flatten(params)["image/patch_embedding"].shape[0]
    grid = (image_size[0] // patch, image_size[1] // patch)
    tensors[name] = position_embedding.to_square(tensors[name], grid)
  return tensors


def make_preprocessor(image_size: tuple[int, int]) -> dict:
  """The content of preprocessor_config.json: plain resizing, then CLIP's mean and deviation."""
  height, width = image_size
  return {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": height, "width": width},
    "resample": _BICUBIC,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [float(str(value)) for value in pixels_lib.PIXEL_MEAN],
    "image_std": [float(str(value)) for value in pixels_lib.PIXEL_STD],
  }


def write_folder(
  folder, params: dict, *, image_size: tuple[int, int], temperature: float = 0.02
) -> None:
  """Writes config.json, model.safetensors and preprocessor_config.json.

  Args:
    folder: made when absent.
    params: nested dict of arrays.
    image_size: (height, width) of the model's images in pixels.
    temperature: tau, becomes CLIP's logit_scale.
  """
  # Imported here: only those who write weights need the package.
  import safetensors.numpy

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  contents = {
    files_lib.CONFIG_FILE: make_config(params, image_size=image_size, temperature=temperature),
    PREPROCESSOR_FILE: make_preprocessor(image_size),
  }
  for name, content in contents.items():
    (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
  tensors = make_tensors(params, image_size=image_size, temperature=temperature)
  # transformers refuses files that do not say for which framework they are.
  content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
  # Written by us: the library's own writer makes files that only their owner may read.
  (folder / files_lib.WEIGHTS_FILE).write_bytes(content)
