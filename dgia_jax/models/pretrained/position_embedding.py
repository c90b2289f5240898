"""Position embeddings for another grid of patches.

A table has the class token's row first and then the grid row by row: (1 + ny * nx, C).
"""

from collections.abc import Callable

import numpy as np


def resize(table: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
  """Resizes the grid as the released code does; the class row is kept.

  Bilinear with half-pixel centres, clamped at the edges, without smoothing even when shrinking.

  Args:
    table: (1 + source ny * nx, C) float32.
    source, target: (ny, nx), patches down and across.

  Returns:
    (1 + target ny * nx, C) float32.
  """
  return _map_grid(table, source, target, _linear_kernel)


def to_square(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """A square table from which `from_square` gets `table` back.

  transformers' CLIP knows square tables only, and shrinks them for other images bicubically. That
  is a linear map of full row rank, so its pseudo-inverse gives a table that it maps onto ours.

  Args:
    table: (1 + ny * nx, C) float32.
    grid: (ny, nx).

  Returns:
    (1 + g * g, C) float32 with g = max(ny, nx).
  """
  side = max(grid)
  inverses = [np.linalg.pinv(_sampling_matrix(side, size, _cubic_kernel)) for size in grid]
  return _apply(table, grid, *inverses)


def from_square(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """What transformers uses for an image of `grid` patches with `interpolate_pos_encoding=True`.

  Args:
    table: (1 + g * g, C) float32.
    grid: (ny, nx), neither above g.

  Returns:
    (1 + ny * nx, C) float32.
  """
  side = round((len(table) - 1) ** 0.5)
  return _map_grid(table, (side, side), grid, _cubic_kernel)


def _map_grid(table, source, target, kernel):
  matrices = [_sampling_matrix(*sizes, kernel) for sizes in zip(source, target, strict=True)]
  return _apply(table, source, *matrices)


def _apply(table, grid, matrix_y, matrix_x):
  """Maps the columns of the grid with one matrix and its rows with another."""
  patches = table[1:].reshape(*grid, -1).astype(np.float64)
  patches = np.einsum("Yy,Xx,yxc->YXc", matrix_y, matrix_x, patches, optimize=True)
  patches = patches.reshape(-1, table.shape[1])
  return np.concatenate([table[:1], patches]).astype(np.float32)


def _sampling_matrix(source: int, target: int, kernel: Callable) -> np.ndarray:
  """Weights (target, source) with which `target` evenly spread samples read `source` values."""
  centres = (np.arange(target) + 0.5) * source / target - 0.5
  first = np.floor(centres).astype(int)
  matrix = np.zeros((target, source))
  for tap in range(-1, 3):
    # What would be read beyond the edge is read at the edge.
    column = np.clip(first + tap, 0, source - 1)
    np.add.at(matrix, (np.arange(target), column), kernel(np.abs(centres - (first + tap))))
  return matrix


def _linear_kernel(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1 - distance, 0)


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
  """Keys' kernel with a = -0.75, which torch uses."""
  a = -0.75
  near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
  far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
  return np.where(distance <= 1, near, far)
