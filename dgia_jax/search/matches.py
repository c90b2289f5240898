"""Results of a search, and files that hold the same picture."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Cosine from which two images count as one picture, also when it was saved again in another format.
SAME_PICTURE = 0.999


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
