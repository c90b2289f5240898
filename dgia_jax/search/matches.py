"""Results of a search, their re-ranking, and files that hold the same picture."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from dgia_jax.training import test_time

# Cosine from which two images count as one picture, also when it was saved again in another format.
SAME_PICTURE = 0.999
# The best results that re-ranking puts into another order; they are compared with each other.
CANDIDATES = test_time.CANDIDATES

_overlap = jax.jit(test_time.neighbourhood_overlap)


@dataclasses.dataclass(frozen=True)
class Match:
  """A result of a search.

  Attributes:
    path: of the image.
    score: cosine similarity to the query.
    row: of the index.
    copies: other files with the same picture, if these are folded.
  """

  path: pathlib.Path
  score: float
  row: int
  copies: tuple[pathlib.Path, ...] = ()

  @property
  def files(self) -> tuple[pathlib.Path, ...]:
    """All files with the picture."""
    return (self.path, *self.copies)


def folded(matches: Sequence[Match], features_NxD: Float[np.ndarray, "N D"]) -> list[Match]:
  """The first match of every picture, which holds the paths of its copies."""
  kept_NxD, folded = np.empty_like(features_NxD), []
  for features_D, match in zip(features_NxD, matches, strict=True):
    is_copy = kept_NxD[: len(folded)] @ features_D >= SAME_PICTURE
    if is_copy.any():
      place = int(np.argmax(is_copy))
      copies = (*folded[place].copies, match.path)
      folded[place] = dataclasses.replace(folded[place], copies=copies)
    else:
      kept_NxD[len(folded)] = features_D
      folded.append(match)
  return folded


def reranked_order(
  scores_K: Float[np.ndarray, " K"], candidates_CxD: Float[np.ndarray, "C D"]
) -> Int[np.ndarray, " K"]:
  """The order of results that are best first, after `test_time.rerank` of the first C.

  Args:
    scores_K: their cosines to the query.
    candidates_CxD: features, of norm 1, of the first `CANDIDATES`; all, if there are fewer.
  """
  ranked_K = scores_K.astype(np.float32)
  if len(candidates_CxD):
    ranked_K[: len(candidates_CxD)] += test_time.WEIGHT * np.asarray(_overlap(candidates_CxD))
  return np.argsort(-ranked_K, kind="stable")
