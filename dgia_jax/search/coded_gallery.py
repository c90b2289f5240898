"""Exact search that reads codes of 8 bits, and few of the features.

One pass over the codes gives every row a score that is off by a known bound at most. The features
of the best rows by this score are read and scored exactly; the worst of these exact scores is one
that every result reaches. All rows whose coded score plus bound reaches it are scored exactly, too.
No other row can be among the results, so they equal those of a search of all features.

  score = query . feature = query . center + (query * spread) . (scale * code) + query . e

By Cauchy-Schwarz the last term is at most |query| |e|. When a few queries are searched at once,
each is rounded to 16 bits and split into two rows of 8 bits: a CPU multiplies 8 bits by 8 bits
fastest. The rounding adds at most |rounding error| |scale * code|.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgia_jax.search import exact
from dgia_jax.search.codes import Codes
from dgia_jax.search.gallery import BINS, check_search

# Queries of one pass. Rounding is faster for a few, float32 for one and for many.
FEW_QUERIES, MANY_QUERIES = 4, 16
BLOCK_ROWS = 4096  # scored at a time: as float32 they fit into the caches of a CPU
SEGMENT = 128  # rows of which the best score is kept, so that few scores are looked at
_BASE = 256  # of the two digits of a rounded query
_MAX_INT = 127 * _BASE
_SLACK = 1e-6  # more than the rounding of what is added to scores in float32


@dataclasses.dataclass(frozen=True)
class _Pass:
  """Coded scores of one query (G blocks of S segments of J rows), without `query . center`."""

  scores_GxSxJ: Float[np.ndarray, "G S J"]  # -inf for rows that are not searched
  maxima_GxS: Float[np.ndarray, "G S"]  # of each segment
  rounding: float  # error of a score, as a multiple of the norm of the row's code


def serves(mesh: jax.sharding.Mesh) -> bool:
  """Whether codes are faster than features on these devices: they are where memory is the limit."""
  return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


class CodedGallery:
  """The codes of an index on one CPU device, searched exactly by cosine similarity."""

  def __init__(self, codes: Codes, usable_M: Bool[np.ndarray, " M"], read: exact.Reader):
    """Wraps the codes without copying them.

    Args:
      codes: of all rows, at least `SEGMENT`.
      usable_M: which rows can be results.
      read: reads features of norm 1.
    """
    self._codes, self._usable_M, self._read = codes, usable_M, read
    self._arrays = jax.device_put((codes.codes, codes.scale))
    self._block_rows = min(BLOCK_ROWS, len(usable_M) // SEGMENT * SEGMENT)
    self.num_rescored = 0  # features read by all searches so far

  def search(
    self,
    queries_QxD: Float[Array | np.ndarray, "..."],
    top: int,
    among_M: Bool[np.ndarray, " M"] | None = None,
  ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """Cosines, best first, and rows; see `Gallery.search` and `exact`."""
    check_search(queries_QxD, len(self._codes.center), top)
    queries_QxD = exact.unit_queries(queries_QxD)
    self._codes.check()
    among_M = self._usable_M if among_M is None else among_M
    count = min(top, int(among_M.sum()))
    scores_QxK = np.zeros((len(queries_QxD), count), np.float32)
    rows_QxK = np.zeros((len(queries_QxD), count), np.int32)
    if count:
      for number, scored in enumerate(self._passes(queries_QxD, among_M)):
        results = self._best(queries_QxD[number], scored, count)
        scores_QxK[number], rows_QxK[number] = results
    return scores_QxK, rows_QxK

  def histogram(self, query_D: Float[np.ndarray, " D"]) -> Float[np.ndarray, " _"]:
    """Like `Gallery.histogram`, but of coded scores, so a row may fall into the next bin."""
    query_1xD = exact.unit_queries(query_D[None])
    self._codes.check()
    (scored,) = self._passes(query_1xD, self._usable_M)
    scores = scored.scores_GxSxJ[scored.scores_GxSxJ > -np.inf]
    scores += np.float32(query_1xD[0] @ self._codes.center)
    return np.histogram(scores.clip(-1, 1), BINS, (-1.0, 1.0))[0].astype(np.float32)

  def _passes(
    self, queries_QxD: Float[np.ndarray, "Q D"], among_M: Bool[np.ndarray, " M"]
  ) -> Iterator[_Pass]:
    """Scores all rows by their codes, for one query after the other."""
    queries_QxD = queries_QxD * self._codes.spread
    start = 0
    while start < len(queries_QxD):
      is_rounded = 1 < len(queries_QxD) - start < MANY_QUERIES
      some_QxD = queries_QxD[start : start + (FEW_QUERIES if is_rounded else MANY_QUERIES)]
      start += len(some_QxD)
      if is_rounded:
        # Padded, because every number of queries would be compiled.
        padded_QxD = np.pad(some_QxD, [(0, FEW_QUERIES - len(some_QxD)), (0, 0)])
        unit_Q, rounded_QxD, terms = _rounded(padded_QxD)
      else:
        unit_Q, rounded_QxD = np.ones(len(some_QxD), np.float32), some_QxD.astype(np.float32)
        terms = (rounded_QxD,)
      scores_GxQxSxJ, maxima_GxQxS = (
        np.asarray(array)
        for array in _score(terms, unit_Q, *self._arrays, among_M, self._block_rows)
      )
      for number, query_D in enumerate(some_QxD):
        error = np.linalg.norm(query_D - rounded_QxD[number] * np.float64(unit_Q[number]))
        error += exact.float32_error(len(query_D)) * np.linalg.norm(query_D)
        yield _Pass(scores_GxQxSxJ[:, number], maxima_GxQxS[:, number], float(error))

  def _best(
    self, query_D: Float[np.ndarray, " D"], scored: _Pass, count: int
  ) -> tuple[Float[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """The results for one query; `count` rows at least are searched."""
    # The best `count` rows by coded score are in the `count` segments with the best maxima.
    maxima = scored.maxima_GxS.ravel()
    segments = np.argpartition(maxima, -min(count, len(maxima)))[-count:]
    near = self._scores(scored, segments)
    place = np.argpartition(near.ravel(), -count)[-count:]
    rows = self._rows(scored, segments[place // SEGMENT], place % SEGMENT)
    exact_scores = exact.scores(query_D, rows, self._read)

    reached = exact_scores.min() - query_D @ self._codes.center - _SLACK
    max_error, max_norm = self._bounds
    lowest = reached - max_error - scored.rounding * max_norm - _SLACK
    segments = np.flatnonzero(maxima >= lowest)
    near = self._scores(scored, segments)
    number, place = np.nonzero(near >= lowest)
    others = self._rows(scored, segments[number], place)
    bound = self._codes.error[others] + scored.rounding * self._codes.norm[others].astype(float)
    others = np.setdiff1d(others[near[number, place] + bound >= reached], rows)
    self.num_rescored += len(rows) + len(others)
    exact_scores = np.concatenate([exact_scores, exact.scores(query_D, others, self._read)])
    return exact.best(exact_scores, np.concatenate([rows, others]), count)

  @functools.cached_property
  def _bounds(self) -> tuple[float, float]:
    """The largest error and norm of all codes; read once these are verified."""
    return float(self._codes.error.max()), float(self._codes.norm.max())

  def _scores(self, scored: _Pass, segments: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n J"]:
    """Coded scores of some segments, numbered through all blocks."""
    block, segment = np.divmod(segments, scored.maxima_GxS.shape[1])
    return scored.scores_GxSxJ[block, segment]

  def _rows(
    self, scored: _Pass, segments: Int[np.ndarray, " n"], place: Int[np.ndarray, " n"]
  ) -> Int[np.ndarray, " n"]:
    """The rows at some places of segments."""
    block, segment = np.divmod(segments, scored.maxima_GxS.shape[1])
    first_row = np.minimum(block * self._block_rows, len(self._usable_M) - self._block_rows)
    return first_row + segment * SEGMENT + place


def _rounded(
  queries_QxD: Float[np.ndarray, "Q D"],
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
  """Units (Q,) of queries, the integers (Q, D) to multiply them by, and their digits in int8."""
  unit_Q = (np.abs(queries_QxD).max(axis=1) / _MAX_INT).astype(np.float32)
  unit_Q = np.where(unit_Q > 0, unit_Q, np.float32(1))
  rounded_QxD = np.rint(queries_QxD / unit_Q[:, None]).clip(-_MAX_INT, _MAX_INT)
  high_QxD = np.floor(rounded_QxD / _BASE + 0.5)  # leaves a low digit of -128 to 127
  low_QxD = rounded_QxD - _BASE * high_QxD
  return unit_Q, rounded_QxD, (high_QxD.astype(np.int8), low_QxD.astype(np.int8))


@functools.partial(jax.jit, static_argnames="block_rows")
def _score(
  terms: tuple[Array, ...],
  unit_Q: Array,
  codes_NxD: Array,
  scale_N: Array,
  among_N: Array,
  block_rows: int,
) -> tuple[Float[Array, "G Q S J"], Float[Array, "G Q S"]]:
  """Scores of all rows, block by block, and the maxima of their segments.

  The last block is moved back to end with the codes; rows that it repeats get -inf, like those
  that are not searched.

  Args:
    terms: the queries (Q, D) in float32, or the digits of integers to `_BASE`, in int8.
    unit_Q: what the queries are multiples of.
    codes_NxD, scale_N: see `Codes`.
    among_N: the rows that are searched.
    block_rows: a multiple of `SEGMENT`.
  """
  num_rows = len(among_N)

  def dot(codes_RxD: Array) -> Float[Array, "Q R"]:
    if len(terms) == 1:
      return jnp.dot(terms[0], codes_RxD.astype(jnp.float32).T, precision="highest")
    digits_QxD = jnp.concatenate(terms)
    dot_RxQ = jax.lax.dot_general(
      codes_RxD, digits_QxD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    high_QxR, low_QxR = jnp.split(dot_RxQ.T.astype(jnp.float32), 2)
    return high_QxR * _BASE + low_QxR

  def visit(_: None, block: Array) -> tuple[None, tuple[Array, Array]]:
    start = jnp.minimum(block * block_rows, num_rows - block_rows)
    take = lambda array: jax.lax.dynamic_slice_in_dim(array, start, block_rows)
    scores_QxR = dot(take(codes_NxD)) * take(scale_N)[None] * unit_Q[:, None]
    among_R = take(among_N) & (start + jnp.arange(block_rows) >= block * block_rows)
    scores_QxR = jnp.where(among_R[None], scores_QxR, -jnp.inf)
    scores_QxSxJ = scores_QxR.reshape(len(unit_Q), -1, SEGMENT)
    return None, (scores_QxSxJ, scores_QxSxJ.max(axis=2))

  return jax.lax.scan(visit, None, jnp.arange(-(-num_rows // block_rows)))[1]
