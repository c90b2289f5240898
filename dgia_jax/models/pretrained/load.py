"""Loads a CLIP or SigLIP checkpoint of any kind into the parameters of a model.

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
from dgia_jax.models import dual_encoder, families
from dgia_jax.models.families import Family
from dgia_jax.models.pretrained import checkpoint_files, position_embedding, tensor_names
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained.checkpoint_config import CheckpointConfig

_MAX_PROBLEMS = 20  # in one message
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
  name_or_path: str,
  template: Mapping[str, Any],
  *,
  image_size: tuple[int, int],
  family: Family = families.CLIP,
) -> Pretrained:
  """Reads weights for a model and resizes the position embeddings to its image size.

  Args:
    name_or_path: a folder of Hugging Face or open_clip, a hub name, OpenAI's ViT-B-16.pt, or a
      checkpoint of a program that trains a CLIP, such as a best.pth of the released program.
    template: the model's parameters, a nested dict of arrays or `jax.ShapeDtypeStruct`s.
    image_size: (height, width) in pixels of the model's images.
    family: of the model. A single file does not say which activation it was trained with.

  Raises:
    UserError: the checkpoint cannot be read or does not fit the model; one line lists the
      missing, misshapen and unknown tensors.
  """
  checkpoint = checkpoint_files.read(name_or_path)
  stored = None
  if checkpoint.folder:
    stored = checkpoint_files.read_config(checkpoint.folder)
    checkpoint_files.check_preprocessing(checkpoint.folder, stored)
  tensors, table, dropped = _encoder_tensors(name_or_path, checkpoint.tensors)
  flat = params_lib.flatten(template)
  _check_layout(name_or_path, table, stored, family)
  _check_size(name_or_path, stored, params_lib.size_of(flat, family))
  patch = flat["image/patch_embedding"].shape[0]
  grid = (image_size[0] // patch, image_size[1] // patch)
  problems = _config_problems(stored, flat, family)
  (name,) = table[tensor_names.POSITION_EMBEDDING].names
  _, width = flat[tensor_names.POSITION_EMBEDDING].shape
  positions = tensors.get(name, np.empty(0))
  # `read_params` reports a table that is missing, of another width or not of floats.
  if positions.shape[1:] == (width,) and jnp.issubdtype(positions.dtype, jnp.floating):
    try:
      num_others = 0 if family.is_siglip else 1
      tensors[name] = _fit_positions(positions, num_others, stored.grid if stored else None, grid)
    except ValueError as error:
      problems.append(f"{name} {error}")
  params, mismatches = params_lib.read_params(tensors, flat, table)
  problems += mismatches
  if problems:
    hidden = len(problems) - _MAX_PROBLEMS
    raise UserError(
      f"pretrained={name_or_path} does not fit model.name and the dataset's sizes: "
      + "; ".join(problems[:_MAX_PROBLEMS])
      + (f"; and {hidden:,} more" if hidden > 0 else "")
      + _advice(stored, family)
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
      " visual.class_embedding, vision_model.embeddings.class_embedding or (SigLIP)"
      " vision_model.head.probe"
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


def _check_layout(
  name_or_path: str,
  table: Mapping[str, tensor_names.Rule],
  stored: CheckpointConfig | None,
  family: Family,
) -> None:
  """Raises UserError if CLIP's weights are given to a SigLIP model, or the reverse."""
  is_siglip = table is tensor_names.SIGLIP
  if is_siglip != family.is_siglip:
    kinds = ("CLIP", "SigLIP")
    raise UserError(
      f"pretrained={name_or_path} holds a {kinds[is_siglip]} model, config.model.name one of"
      f" {kinds[family.is_siglip]}{_advice(stored, family)}"
    )


def _check_size(
  name_or_path: str, stored: CheckpointConfig | None, size: dual_encoder.Size
) -> None:
  """Raises UserError if the checkpoint's model has the name of another size in `SIZES`."""
  if stored is None or stored.size == size or stored.size.family != size.family:
    return  # a model of another family has more that differs, see `_config_problems`
  if names := dual_encoder.names_of(stored.size):
    raise UserError(
      f"pretrained={name_or_path} is a model of the size {names[0]}, config.model.name one of"
      f" another; give config.model.name={names[0]}"
    )


def _advice(stored: CheckpointConfig | None, family: Family) -> str:
  """The names of the checkpoint's model, if that is a named one of another family."""
  names = dual_encoder.names_of(stored.size) if stored and stored.size.family != family else []
  return f"; give config.model.name={names[0]}" if names else ""


def _config_problems(
  stored: CheckpointConfig | None, flat: Mapping[str, Any], family: Family
) -> list[str]:
  """Differences between the checkpoint's config and the model, in the words of our settings."""
  problems = list(stored.unsupported) if stored else []
  if stored and stored.size.family != family:
    theirs, ours = stored.size.family, family
    problems.append(
      f"it is a model of {theirs.name} with the activation {theirs.activation}, and"
      f" config.model.name one of {ours.name} with {ours.activation}"
    )
  for tower in ("image", "text"):
    _, width, _, model_heads, _ = flat[f"{tower}/blocks/attention/qkv/kernel"].shape
    if stored:
      heads = getattr(stored.size, tower).heads
    elif family is families.CLIP:
      heads = width // 64  # as in all of OpenAI's
    else:
      heads = model_heads  # not in the file
    if heads != model_heads:
      problems.append(f"its {tower} tower has {heads} attention heads, the model {model_heads}")
  if stored:
    vocab_size, _ = flat["text/token_embedding"].shape
    context_length, _ = flat["text/position_embedding"].shape
    if stored.context_length != context_length:
      problems.append(f"it needs config.tokenizer.context_length={stored.context_length}")
    if stored.vocab_size != vocab_size:
      problems.append(
        f"its vocabulary has {stored.vocab_size:,} tokens, config.tokenizer's {vocab_size:,}"
      )
  return problems


def _fit_positions(
  table: Float[np.ndarray, "_ U"],
  num_others: int,
  trained: tuple[int, int] | None,
  grid: tuple[int, int],
) -> Float[np.ndarray, "_ U"]:
  """Resizes a checkpoint's position table from its own grid to the model's.

  Args:
    table: of the checkpoint: the class token's row, if there is one, then one row per patch.
    num_others: 1 with a class token, else 0.
    trained: the checkpoint's grid according to its config; None without a config.
    grid: (ny, nx) of the model.

  Raises:
    ValueError: the table does not have the grid of its config.
  """
  num_patches = len(table) - num_others
  if trained is not None:
    # transformers' tables are squares, of oblong images too.
    side = max(trained)
    if num_patches != side**2:
      raise ValueError(
        f"has {len(table)} positions, image_size and patch_size in its config.json need"
        f" {num_others + side**2}"
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
