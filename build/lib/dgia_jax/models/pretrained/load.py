"""Loads a CLIP checkpoint of any kind into the parameters of a model.

Every tensor of the checkpoint is used once or reported as dropped, every parameter is filled, and
everything that does not fit is reported together.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import clip_config, files, position_embedding, tensor_names
from dgia_jax.models.pretrained import params as params_lib

_MAX_PATCHES = 2**20  # in a position table; a larger number is damage, not a model


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Loaded weights.

  Attributes:
    params: nested dict of float32 NumPy arrays, with the structure of the model.
    dropped: sorted names of the checkpoint's tensors that are not weights of the encoders.
  """

  params: dict[str, Any]
  dropped: tuple[str, ...]


def load_pretrained(
  name_or_path: str, template: Mapping[str, Any], *, image_size: tuple[int, int]
) -> Pretrained:
  """Reads CLIP weights for a model and resizes the position embeddings to its image size.

  Args:
    name_or_path: a Hugging Face folder or hub name, OpenAI's ViT-B-16.pt, or a best.pth of the
      released program.
    template: the model's parameters, a nested dict of arrays or `jax.ShapeDtypeStruct`s.
    image_size: (height, width) in pixels of the model's images.

  Raises:
    UserError: the checkpoint cannot be read or does not fit the model; one line lists every
      missing, misshapen and unknown tensor.
  """
  checkpoint = files.read(name_or_path)
  clip = None
  if checkpoint.folder:
    clip = clip_config.read(checkpoint.folder)
    clip_config.check_preprocessor(checkpoint.folder, clip)
  tensors, table, dropped = _encoder_tensors(name_or_path, checkpoint.tensors)
  flat = params_lib.flatten(template)
  patch = flat["image/patch_embedding"].shape[0]
  grid = (image_size[0] // patch, image_size[1] // patch)
  problems = _config_problems(clip, flat)
  (name,) = table[tensor_names.POSITION_EMBEDDING].names
  _, width = flat[tensor_names.POSITION_EMBEDDING].shape
  positions = tensors.get(name, np.empty(0))
  # `read_params` reports a table that is missing, of another width or not of floats.
  if positions.shape[1:] == (width,) and jnp.issubdtype(positions.dtype, jnp.floating):
    try:
      tensors[name] = _fit_positions(positions, clip.grid if clip else None, grid)
    except ValueError as error:
      problems.append(f"{name} {error}")
  params, mismatches = params_lib.read_params(tensors, flat, table)
  problems += mismatches
  if problems:
    raise UserError(
      f"pretrained={name_or_path} does not fit model.name and the dataset's sizes: "
      + "; ".join(problems)
    )
  return Pretrained(params, dropped)


def _encoder_tensors(
  name_or_path: str, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, tensor_names.Rule], tuple[str, ...]]:
  """The encoders' weights by their plain names, the table of those names, and all other names."""
  convention = tensor_names.find_convention(tensors)
  if convention is None:
    raise UserError(
      f"pretrained={name_or_path} holds no CLIP weights (or several): no single tensor is called"
      " visual.class_embedding or vision_model.embeddings.class_embedding"
    )
  table, prefix = convention
  weights, dropped = {}, []
  for name, tensor in tensors.items():
    plain_name = name.removeprefix(prefix)
    if name.startswith(prefix) and plain_name not in tensor_names.NOT_WEIGHTS:
      weights[plain_name] = tensor
    else:
      dropped.append(name)
  return weights, table, tuple(sorted(dropped))


def _config_problems(clip: clip_config.ClipConfig | None, flat: Mapping[str, Any]) -> list[str]:
  """Differences between config.json and the model that no shape of a tensor shows."""
  problems = list(clip.unsupported) if clip else []
  for tower in ("image", "text"):
    _, width, _, model_heads, _ = flat[f"{tower}/blocks/attention/qkv/kernel"].shape
    # Files without a config are OpenAI's, whose heads are 64 wide.
    heads = getattr(clip.size, tower).heads if clip else width // 64
    if heads != model_heads:
      problems.append(f"its {tower} tower has {heads} attention heads, the model {model_heads}")
  return problems


def _fit_positions(
  table: Float[np.ndarray, "_ U"], trained: tuple[int, int] | None, grid: tuple[int, int]
) -> Float[np.ndarray, "_ U"]:
  """Resizes a checkpoint's position table from its own grid to the model's.

  Args:
    table: of the checkpoint: the class token's row, then one row per patch.
    trained: the checkpoint's grid according to its config; None without a config.
    grid: (ny, nx) of the model.

  Raises:
    ValueError: the table does not have the grid of its config.
  """
  num_patches = len(table) - 1
  if trained is not None:
    # transformers' tables are squares, of oblong images too.
    side = max(trained)
    if num_patches != side**2:
      raise ValueError(
        f"has {len(table)} positions, image_size and patch_size in its config.json need"
        f" {1 + side**2}"
      )
    if trained[0] != trained[1]:
      table = position_embedding.from_square(table, trained)
  elif num_patches == grid[0] * grid[1]:
    # As in the released code: a table with as many patches as the model's has the model's grid,
    # any other is a square.
    trained = grid
  else:
    side = math.isqrt(max(num_patches, 0))
    if not 0 < num_patches == side**2 <= _MAX_PATCHES:
      raise ValueError(f"has {len(table)} positions, which are no class token and square grid")
    trained = (side, side)
  if trained == grid:
    return table
  return position_embedding.resize(np.asarray(table, np.float32), trained, grid)
