"""Position tables for other grids of patches.

A table holds the grid row by row, (ny * nx, U); in CLIP's models the row of the class token comes
first. A grid is (ny, nx), the number of patches down and across.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, "_ U"]
Matrix = Float[np.ndarray, "_ _"]


def resize(table: Table, source: tuple[int, int], target: tuple[int, int]) -> Table:
  """Resizes the grid as the released code does and keeps the class token's row.

  The interpolation is bilinear with half-pixel centres, clamped at the edges, and without
  smoothing even when the grid shrinks.
  """
  return _map_grid(table, source, target, _linear_kernel)


def to_square(table: Table, grid: tuple[int, int]) -> Table:
  """Returns a square table, g x g with g = max(ny, nx), which `from_square` maps back to `table`.

  transformers' CLIP only has square tables, which it resizes bicubically for other images. Here
  that is a linear map of full row rank, so its pseudo-inverse gives a square that it maps onto the
  original table.
  """
  side = max(grid)
  inverses = [np.linalg.pinv(_sampling_matrix(side, size, _cubic_kernel)) for size in grid]
  return _apply(table, grid, *inverses)


def from_square(table: Table, grid: tuple[int, int]) -> Table:
  """Resizes a square table as transformers does with `interpolate_pos_encoding=True`.

  Neither side of `grid` may be larger than the square's.
  """
  side = math.isqrt(len(table))
  return _map_grid(table, (side, side), grid, _cubic_kernel)


def _map_grid(
  table: Table,
  source: tuple[int, int],
  target: tuple[int, int],
  kernel: Callable[[np.ndarray], np.ndarray],
) -> Table:
  matrices = [_sampling_matrix(*sizes, kernel) for sizes in zip(source, target, strict=True)]
  return _apply(table, source, *matrices)


def _apply(table: Table, grid: tuple[int, int], matrix_y: Matrix, matrix_x: Matrix) -> Table:
  """Maps the columns of the grid with one matrix and its rows with the other."""
  num_others = len(table) - grid[0] * grid[1]  # 1 with a class token
  patches = table[num_others:].reshape(*grid, -1).astype(np.float64)
  patches = np.einsum("Yy,Xx,yxu->YXu", matrix_y, matrix_x, patches, optimize=True)
  patches = patches.reshape(-1, table.shape[1])
  return np.concatenate([table[:num_others], patches]).astype(np.float32)


def _sampling_matrix(
  source: int, target: int, kernel: Callable[[np.ndarray], np.ndarray]
) -> Matrix:
  """Weights (target, source) with which `target` evenly spaced samples read `source` values."""
  centres = (np.arange(target) + 0.5) * source / target - 0.5
  first = np.floor(centres).astype(int)
  matrix = np.zeros((target, source))
  for tap in range(-1, 3):
    # Taps beyond an edge read the value at the edge.
    column = np.clip(first + tap, 0, source - 1)
    np.add.at(matrix, (np.arange(target), column), kernel(np.abs(centres - (first + tap))))
  return matrix


def _linear_kernel(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1 - distance, 0)


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
  """Keys' kernel with PyTorch's parameter, a = -0.75."""
  a = -0.75
  near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
  far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
  return np.where(distance <= 1, near, far)
