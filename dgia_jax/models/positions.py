"""Position embeddings for another grid of patches.

A table has the class token's row first and then the grid row by row: (1 + ny * nx, C).
"""

import jax
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
  width = table.shape[1]
  grid = table[1:].reshape(*source, width)
  grid = jax.image.resize(grid, (*target, width), "linear", antialias=False)
  return np.concatenate([table[:1], np.asarray(grid).reshape(-1, width)])


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
  inverse_y, inverse_x = (np.linalg.pinv(_bicubic_weights(side, size)) for size in grid)
  return _apply(table, grid, inverse_y, inverse_x)


def from_square(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """What transformers uses for an image of `grid` patches with `interpolate_pos_encoding=True`.

  Args:
    table: (1 + g * g, C) float32.
    grid: (ny, nx), neither above g.

  Returns:
    (1 + ny * nx, C) float32.
  """
  side = round((len(table) - 1) ** 0.5)
  weights_y, weights_x = (_bicubic_weights(side, size) for size in grid)
  return _apply(table, (side, side), weights_y, weights_x)


def _apply(table, grid, weights_y, weights_x):
  """Maps the grid's rows with one matrix and its columns with another."""
  patches = table[1:].reshape(*grid, -1).astype(np.float64)
  patches = np.einsum("Yy,Xx,yxc->YXc", weights_y, weights_x, patches, optimize=True)
  patches = patches.reshape(-1, table.shape[1]).astype(np.float32)
  return np.concatenate([table[:1].astype(np.float32), patches])


def _bicubic_weights(source: int, target: int) -> np.ndarray:
  """Matrix (target, source) of torch's bicubic interpolation: Keys' kernel with a = -0.75."""
  a = -0.75
  centres = (np.arange(target) + 0.5) * source / target - 0.5
  first = np.floor(centres).astype(int)
  weights = np.zeros((target, source))
  for tap in range(-1, 3):
    distance = np.abs(centres - (first + tap))
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    # Taps beyond the edge read the edge.
    column = np.clip(first + tap, 0, source - 1)
    np.add.at(weights, (np.arange(target), column), np.where(distance <= 1, near, far))
  return weights
