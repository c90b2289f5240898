"""The order of search results: by cosines in float64, ties to the lowest row.

Devices compute cosines in float32, where two nearly equal ones may change places with the number of
queries or devices, or with the blocks that are scored at a time. So the best by such scores, and a
few more, are scored again on the host. All searches of an index return the same results.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgia_jax.search.gallery import Gallery, check_search, finite_queries

READ_ROWS = 4096  # features read at a time
SPARE = 16  # rows scored again beyond those that are wanted

Reader = Callable[[np.ndarray], np.ndarray]  # rows -> their features (n, D), of norm 1


def float32_error(width: int) -> float:
  """Bound of the rounding error of a product of two float32 vectors of norm 1."""
  return (width + 8) * 2.0**-23


def unit_queries(queries_QxD: Float[Array | np.ndarray, "Q D"]) -> Float[np.ndarray, "Q D"]:
  """Queries of norm 1 in float64; one of zeros stays so.

  Raises:
    UserError: a query is NaN or infinite.
  """
  queries_QxD = finite_queries(queries_QxD).astype(np.float64)
  norm_Q = np.linalg.norm(queries_QxD, axis=1, keepdims=True)
  return queries_QxD / np.where(norm_Q > 0, norm_Q, 1.0)


def scores(
  query_D: Float[np.ndarray, " D"], rows: Int[np.ndarray, " n"], read: Reader
) -> Float[np.ndarray, " n"]:
  """Cosines of a query of norm 1 and some rows; equal features have equal scores."""
  scores_n = np.empty(len(rows))
  for start in range(0, len(rows), READ_ROWS):
    part = slice(start, start + READ_ROWS)
    # A sum over each row, since a matrix product may add in an order that depends on the place.
    scores_n[part] = (read(rows[part]) * query_D).sum(axis=1)
  return scores_n


def best(
  scores_n: Float[np.ndarray, " n"], rows_n: Int[np.ndarray, " n"], count: int
) -> tuple[Float[np.ndarray, " K"], Int[np.ndarray, " K"]]:
  """The `count` best of some rows, in order."""
  order = np.lexsort((rows_n, -scores_n))[:count]
  return scores_n[order], rows_n[order]


class ExactGallery:
  """A gallery whose results are in the order of exact scores."""

  def __init__(self, gallery: Gallery, read: Reader):
    """Takes a gallery of features of norm 1, and what reads these features."""
    self._gallery, self._read = gallery, read
    self.histogram = gallery.histogram

  def search(
    self,
    queries_QxD: Float[Array | np.ndarray, "..."],
    top: int,
    among_M: Bool[np.ndarray, " M"] | None = None,
  ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """Cosines, best first, and rows; see `Gallery.search`."""
    check_search(queries_QxD, self._gallery.width, top)
    unit_QxD = unit_queries(queries_QxD)
    error, spare = float32_error(unit_QxD.shape[1]), SPARE
    while True:
      near_QxC, rows_QxC = self._gallery.search(unit_QxD, top + spare, among_M)
      count, num_near = min(top, rows_QxC.shape[1]), rows_QxC.shape[1]
      scores_QxK = np.zeros((len(unit_QxD), count))
      rows_QxK = np.zeros((len(unit_QxD), count), np.int32)
      for number, (query_D, rows_C) in enumerate(zip(unit_QxD, rows_QxC, strict=True)):
        exact_C = scores(query_D, rows_C, self._read)
        scores_QxK[number], rows_QxK[number] = best(exact_C, rows_C, count)
      # The rows that were not scored again are at most this much better than they seem.
      is_certain = num_near < top + spare or (near_QxC[:, -1] + error < scores_QxK[:, -1]).all()
      if is_certain:
        return scores_QxK.astype(np.float32), rows_QxK
      spare *= 4
