"""Scores that come with the package, to compare those of a new run with.

One run says little, because scores vary with the seed. Stored are those of several seeds, of the
whole method and of the contrastive loss alone. `python -m experiments.stored_scores` writes them.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dgia_jax import user_files

FILE = pathlib.Path(__file__).with_suffix(".json")
METRICS = ("R1", "mAP")  # those that are stored


@dataclasses.dataclass(frozen=True)
class StoredScores:
  """Scores of one setting.

  Attributes:
    title: of the setting.
    command: that trains such a run, without its seed and working directory.
    seeds: of the runs.
    scores: metric -> percent of every seed; text to image, on test, after the last epoch.
  """

  title: str
  command: str
  seeds: Sequence[int]
  scores: Mapping[str, Sequence[float]]

  def mean(self, metric: str) -> float:
    """The mean over seeds."""
    return statistics.fmean(self.scores[metric])

  def deviation(self, metric: str) -> float:
    """The sample standard deviation over seeds."""
    return statistics.stdev(self.scores[metric])


def of_recipe(recipe: Mapping[str, Any]) -> list[StoredScores]:
  """The stored scores to compare a run with; none if its config is not the one of the stored runs.

  Args:
    recipe: `config.recipe` of the run.
  """
  if not FILE.exists():
    return []
  content = user_files.read_json(FILE, "stored scores")
  if content["recipe"] != recipe:
    return []
  return [StoredScores(**setting) for setting in content["settings"]]
