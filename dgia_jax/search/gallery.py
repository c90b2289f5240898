"""Features on the devices, searched exactly by cosine similarity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.method import bank_search, losses

BINS = 200  # of a histogram of cosines


class Gallery:
  """Features to search in, split by rows over the devices of a mesh.

  Attributes:
    size, width: M and D.
  """

  def __init__(
    self,
    features_MxD: Float[Array | np.ndarray, "M D"],
    mesh: jax.sharding.Mesh,
    usable_M: Bool[np.ndarray, " M"] | None = None,
  ):
    """Places the features; on a CPU, those of an aligned file or array are not copied.

    Args:
      features_MxD: the features; a memory-mapped file is read only where a search needs it.
      mesh: the mesh.
      usable_M: promises that every row has norm 1, and tells which rows can be results. If it is
        None, norms are computed, and rows of zeros are the ones that cannot.

    Raises:
      UserError: a feature is NaN or infinite.
    """
    self.size, self.width = features_MxD.shape
    layout = sharding.bank_rows(mesh)
    padded = max(-(-self.size // mesh.size), 1) * mesh.size

    def place(array: Array | np.ndarray, shape: tuple[int, ...]) -> jax.Array:
      def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(padded)
        rows = np.asarray(array[min(start, self.size) : min(stop, self.size)], np.float32)
        missing = stop - start - len(rows)
        return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1)) if missing else rows

      return jax.make_array_from_callback(shape, layout, part)

    self._features = place(features_MxD, (padded, self.width))
    if usable_M is None:
      inspect = jax.jit(lambda rows: (losses.inverse_norm(rows), jnp.isfinite(rows).all()))
      self._inverse_norm, finite = inspect(self._features)
      self._inverse_norm = jax.device_put(self._inverse_norm, layout)
      if not finite:
        raise UserError("a feature of the gallery is NaN or infinite: it cannot be ranked")
      self.num_usable = int((self._inverse_norm > 0).sum())
    else:
      self._inverse_norm = place(usable_M, (padded,))
      self.num_usable = int(usable_M.sum())
    self._place = lambda usable_M: place(usable_M, (padded,))
    self._search = jax.jit(
      lambda queries, rows, count: bank_search.nearest((queries,), (rows,), count, mesh=mesh),
      static_argnums=2,
    )
    self._histogram = jax.jit(
      lambda query, rows, usable: jnp.histogram(
        (rows @ query).clip(-1, 1),  # rounding may lead out of the range
        BINS,
        (-1.0, 1.0),
        weights=(usable > 0).astype(jnp.float32),
      )[0]
    )

  def search(
    self,
    queries_QxD: Float[Array | np.ndarray, "..."],
    top: int,
    among_M: Bool[np.ndarray, " M"] | None = None,
  ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """Cosines, best first, and gallery rows; K = `top`, or all usable rows if there are fewer.

    Ties go to the lowest row.

    Args:
      queries_QxD: features of the queries.
      top: largest number of results.
      among_M: the usable rows that are searched; None for all.

    Raises:
      UserError: a query is NaN or infinite, the queries are not (Q, D), or `top` is below 1.
    """
    check_search(queries_QxD, self.width, top)
    queries_QxD = finite_queries(queries_QxD)
    usable, num_usable = self._inverse_norm, self.num_usable
    if among_M is not None:
      usable, num_usable = self._place(among_M), int(among_M.sum())
    count = min(top, num_usable)
    if not count or not len(queries_QxD):
      shape = (len(queries_QxD), count)
      return np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    scores, rows = self._search(queries_QxD, (self._features, usable), count)
    return np.asarray(scores), np.asarray(rows)

  def histogram(self, query_D: Float[np.ndarray, " D"]) -> Float[np.ndarray, " _"]:
    """Numbers of usable rows, of norm 1, in `BINS` equal ranges of cosines from -1 to 1."""
    query_D = np.asarray(query_D, np.float32)
    return np.asarray(self._histogram(query_D, self._features, self._inverse_norm))


def check_search(queries_QxD: Any, width: int, top: int) -> None:
  """Raises UserError unless these are queries (Q, `width`), and `top` is 1 or more."""
  if top < 1:
    raise UserError(f"top={top}: give 1 or more")
  shape = np.shape(queries_QxD)
  if len(shape) != 2 or shape[1] != width:
    raise UserError(f"queries have the shape {shape}: give (queries, {width}), one per row")


def finite_queries(queries_QxD: Float[Array | np.ndarray, "Q D"]) -> Float[np.ndarray, "Q D"]:
  """Queries in float32. Raises UserError if one is NaN or infinite."""
  queries_QxD = np.asarray(queries_QxD, np.float32)
  if not np.isfinite(queries_QxD).all():
    raise UserError("a feature of a query is NaN or infinite: nothing can be ranked by it")
  return queries_QxD
