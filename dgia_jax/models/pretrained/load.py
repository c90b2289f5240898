"""Weights in: a CLIP checkpoint of any kind to the parameters of a model, nothing lost unnoticed.

Every tensor of the checkpoint is used once or named as dropped, every parameter is filled, and all
that does not fit is reported together. The way out is `hugging_face.write_folder`.
"""

import dataclasses
import math

import numpy as np

from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import files as files_lib
from dgia_jax.models.pretrained import hugging_face, position_embedding, tensor_names
from dgia_jax.models.pretrained import params as params_lib


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Loaded weights.

  Attributes:
    params: nested dict of float32 numpy arrays, of the model's structure.
    dropped: names of the checkpoint's tensors that are no weights of the encoders, sorted.
  """

  params: dict
  dropped: tuple[str, ...]


def load_pretrained(
  name_or_path: str, template: dict, *, image_size: tuple[int, int]
) -> Pretrained:
  """Reads CLIP weights for a model; position embeddings are resized to the image size.

  Args:
    name_or_path: a Hugging Face folder or hub name, OpenAI's ViT-B-16.pt, or a best.pth of the
      released program.
    template: the model's parameters, a nested dict of arrays or `jax.ShapeDtypeStruct`s.
    image_size: (height, width) of the model's images in pixels.

  Returns:
    A Pretrained.

  Raises:
    UserError: nothing readable is there, or it does not fit the model; one line lists every
      missing, misshapen and unknown tensor.
  """
  files = files_lib.read(name_or_path)
  found = tensor_names.find_convention(files.tensors)
  if found is None:
    raise UserError(
      f"pretrained={name_or_path} holds no CLIP weights (or several): no single tensor is called"
      " visual.class_embedding or vision_model.embeddings.class_embedding"
    )
  table, prefix = found
  tensors = {
    name.removeprefix(prefix): tensor
    for name, tensor in files.tensors.items()
    if name.startswith(prefix)
  }
  outside = [name for name in files.tensors if not name.startswith(prefix)]
  inside = tensor_names.NOT_WEIGHTS & tensors.keys()
  dropped = outside + [prefix + name for name in inside]
  tensors = {name: tensor for name, tensor in tensors.items() if name not in inside}

  flat = params_lib.flatten(template)
  problems = hugging_face.config_problems(files.config, flat)
  patch = flat["image/patch_embedding"].shape[0]
  grid = (image_size[0] // patch, image_size[1] // patch)
  (name,) = table[tensor_names.POSITION_EMBEDDING].names
  if name in tensors:
    tensors[name] = _fit_positions(tensors[name], hugging_face.trained_grid(files.config), grid)
  params, mismatches = params_lib.read_params(tensors, flat, table)
  problems += mismatches
  if problems:
    raise UserError(
      f"pretrained={name_or_path} does not fit model.name and the dataset's sizes: "
      + "; ".join(problems)
    )
  return Pretrained(params, tuple(sorted(dropped)))


def _fit_positions(
  table: np.ndarray, trained: tuple[int, int] | None, grid: tuple[int, int]
) -> np.ndarray:
  """Resizes a checkpoint's position table from its own grid to the model's.

  Args:
    table: (positions, C).
    trained: (ny, nx) of the checkpoint as its config says; None when nothing says it.
    grid: (ny, nx) of the model.

  Returns:
    (1 + ny * nx, C) float32, or the table itself when it does not fit its grid.
  """
  rows = len(table) - 1 if table.ndim == 2 else 0
  side = math.isqrt(max(rows, 0))
  if trained is None:
    # Like the released code: as many patches as the model's are the model's, others are a square.
    trained = grid if rows == grid[0] * grid[1] else (side, side)
  elif trained[0] != trained[1] and rows == max(trained) ** 2:
    table = position_embedding.from_square(table, trained)
    rows = len(table) - 1
  if trained == grid or rows <= 0 or rows != trained[0] * trained[1]:
    return table
  return position_embedding.resize(np.asarray(table, np.float32), trained, grid)
