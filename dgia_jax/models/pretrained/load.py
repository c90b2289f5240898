"""Loads a CLIP or SigLIP checkpoint of any kind into the parameters of a model.

Every tensor of the checkpoint is used once or reported as dropped, every parameter is filled, and
everything that does not fit is reported together.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, families
from dgia_jax.models.families import Family
from dgia_jax.models.pretrained import checkpoint_files, position_fit, tensor_names
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained.checkpoint_config import CheckpointConfig

_MAX_PROBLEMS = 20  # in one message


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
  table, prefix = _find_convention(name_or_path, checkpoint.tensors)
  tensors, dropped = _encoder_tensors(checkpoint.tensors, prefix)
  flat = params_lib.flatten(template)
  size = params_lib.size_of(flat, family)
  _check_layout(name_or_path, table, stored, family)
  _check_size(name_or_path, stored, size)
  problems = _config_problems(stored, flat, size)
  (name,) = table[tensor_names.POSITION_EMBEDDING].names
  _, width = flat[tensor_names.POSITION_EMBEDDING].shape
  positions = tensors.get(name, np.empty(0))
  # `read_params` reports a table that is missing, of another width or not of floats.
  if positions.shape[1:] == (width,) and jnp.issubdtype(positions.dtype, jnp.floating):
    patch = size.patch_size
    grid = (image_size[0] // patch, image_size[1] // patch)
    num_others = 0 if family.is_siglip else 1
    try:
      if stored:
        tensors[name] = position_fit.from_folder(positions, num_others, stored.grid, grid)
      else:
        resolution = checkpoint.tensors.get(f"{prefix}input_resolution")
        side = position_fit.stated_side(resolution, patch)
        tensors[name] = position_fit.from_file(positions, num_others, side, prefix, grid)
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


def _find_convention(
  name_or_path: str, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, tensor_names.Rule], str]:
  """The table of the encoders' names and the prefix before them; raises UserError without both."""
  convention = tensor_names.find_convention(tensors)
  if convention is None:
    raise UserError(
      f"pretrained={name_or_path} holds no CLIP weights (or several): no single tensor is called"
      " visual.class_embedding, vision_model.embeddings.class_embedding or (SigLIP)"
      " vision_model.head.probe"
    )
  return convention


def _encoder_tensors(
  tensors: Mapping[str, np.ndarray], prefix: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """The encoders' weights by their plain names, and all other names."""
  weights, dropped = {}, []
  for name, tensor in tensors.items():
    plain_name = name.removeprefix(prefix)
    if name.startswith(prefix) and plain_name not in tensor_names.NOT_WEIGHTS:
      weights[plain_name] = tensor
    else:
      dropped.append(name)
  return weights, tuple(sorted(dropped))


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
  stored: CheckpointConfig | None, flat: Mapping[str, Any], size: dual_encoder.Size
) -> list[str]:
  """Differences between the checkpoint's config and the model, in the words of our settings."""
  problems, family = list(stored.unsupported) if stored else [], size.family
  if stored and stored.size.family != family:
    theirs, ours = stored.size.family, family
    problems.append(
      f"it is a model of {theirs.name} with the activation {theirs.activation}, and"
      f" config.model.name one of {ours.name} with {ours.activation}"
    )
  # A file does not say how many heads it has. A named size has those of its name; of others only
  # OpenAI's habit is known.
  is_unnamed_clip = family is families.CLIP and not dual_encoder.names_of(size)
  for tower in ("image", "text"):
    width, model_heads = getattr(size, tower).width, getattr(size, tower).heads
    if stored:
      heads = getattr(stored.size, tower).heads
    else:
      heads = width // 64 if is_unnamed_clip else model_heads
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
