"""A checkpoint's position table for the grid of a model: which grid the table has, then resizing.

A folder's config says what images its model was trained on. A file alone does not say it, except
for OpenAI's archives, and tables of as many positions can be of different grids.
"""

import math

import numpy as np
from jaxtyping import Float

from dgia_jax.models.pretrained import position_embedding

_MAX_PATCHES = 2**20  # in a position table; a larger number is damage, not a model
# The end of the prefix in checkpoints of the released program and of those that it is built on.
# All of them resize CLIP's table to the grid of their images before they train it.
_RELEASED_PREFIX = "base_model."

Table = Float[np.ndarray, "_ U"]
Grid = tuple[int, int]  # patches down and across


def from_folder(table: Table, num_others: int, trained: Grid, grid: Grid) -> Table:
  """Resizes the table of a folder with a config.

  Args:
    table: of the checkpoint: the class token's row, if there is one, then one row per patch.
    num_others: 1 with a class token, else 0.
    trained: the checkpoint's grid according to its config.
    grid: of the model.

  Raises:
    ValueError: the table does not have the grid of its config.
  """
  # transformers' tables are squares, of oblong images too.
  side = max(trained)
  if len(table) - num_others != side**2:
    raise ValueError(
      f"has {len(table)} positions, image_size and patch_size in its config.json need"
      f" {num_others + side**2}"
    )
  if trained[0] != trained[1]:
    table = position_embedding.from_square(table, trained)
  return _resized(table, trained, grid)


def from_file(table: Table, num_others: int, stated_side: int, prefix: str, grid: Grid) -> Table:
  """Resizes the table of a single file.

  As in the released code, a table with as many patches as the model's has the model's grid, any
  other is a square. But a square of 14 x 14 patches has as many as 28 x 7. Then what the file
  states decides, or else which program wrote it.

  Args:
    table, num_others, grid: as in `from_folder`.
    stated_side: see `stated_side`.
    prefix: what a program around CLIP added to the names of its tensors; "" in published files,
      whose tables are squares.

  Raises:
    ValueError: the table can have no grid, or two.
  """
  num_patches = len(table) - num_others
  side = math.isqrt(max(num_patches, 0))
  square, is_square = (side, side), 0 < num_patches == side**2 <= _MAX_PATCHES
  fits = num_patches == grid[0] * grid[1]
  if not is_square and not fits:
    raise ValueError(f"has {len(table)} positions, which are no class token and square grid")
  if is_square and (not fits or grid == square or side == stated_side or not prefix):
    return _resized(table, square, grid)
  if is_square and not prefix.endswith(_RELEASED_PREFIX):
    raise ValueError(
      f"has {len(table)} positions, which can be a grid of {side} x {side} or of {grid[0]} x"
      f" {grid[1]}: the file does not say which, the folder of a model does"
    )
  return table


def stated_side(resolution: np.ndarray | None, patch_size: int) -> int:
  """The side of the grid that OpenAI's archives state in pixels, as `input_resolution`; else 0."""
  if resolution is None or resolution.size != 1 or not np.issubdtype(resolution.dtype, np.integer):
    return 0
  return int(resolution.reshape(())) // patch_size


def _resized(table: Table, trained: Grid, grid: Grid) -> Table:
  if trained == grid:
    return table
  return position_embedding.resize(np.asarray(table, np.float32), trained, grid)
