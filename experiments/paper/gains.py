"""Gains of each setting over an experiment's first setting, paired by seed."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.paper import paper_numbers, report, runs
from experiments.paper.collect import CollectedResults

# setting -> metric -> gain of each seed
Gains = Mapping[str, Mapping[str, Mapping[int, float]]]


def by_setting(data: CollectedResults, metrics: Sequence[str]) -> Gains:
  """Gains over the first setting, for the settings that share a finished seed with it.

  Runs with the same seed share the order of the data, the views and any pretrained start. Pairing
  them cancels much of the variation between seeds.
  """
  first, *others = (setting.label for setting in data.experiment.settings)
  baseline, gains = _scores_by_seed(data, first), {}
  for label in others:
    scores = _scores_by_seed(data, label)
    if seeds := sorted(baseline.keys() & scores.keys()):
      gains[label] = {
        metric: {seed: scores[seed][metric] - baseline[seed][metric] for seed in seeds}
        for metric in metrics
      }
  return gains


def table(data: CollectedResults, metrics: Sequence[str]) -> report.Table | None:
  """Table of the mean gains, or None if no setting shares a seed with the first."""
  rows = []
  for label, gains in by_setting(data, metrics).items():
    by_metric = [list(by_seed.values()) for by_seed in gains.values()]
    rows.append((label, *map(_mean_and_deviation, by_metric), len(by_metric[0])))
  if not rows:
    return None
  first = data.experiment.settings[0].label
  printed = (paper_numbers.METRICS[metric] for metric in metrics)
  return (f"gain over {first}, paired by seed", *printed, "seeds"), rows


def _scores_by_seed(data: CollectedResults, label: str) -> dict[int, runs.Scores]:
  return {
    run.seed: runs.scores_of(results, data.options, run.folder)
    for run, results in data.finished(label)
  }


def _mean_and_deviation(values: Sequence[float]) -> str:
  deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
  return f"{np.mean(values):+.2f}{deviation}"
