"""Gains of each setting over an experiment's first setting, paired by seed."""

from collections.abc import Mapping, Sequence

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


def table(gains: Gains, baseline: str) -> report.Table | None:
  """Table of the mean gains over the setting `baseline`, or None without any gain."""
  if not gains:
    return None
  rows = []
  for label, by_metric in gains.items():
    by_seed = [list(gain_of.values()) for gain_of in by_metric.values()]
    means = (report.format_mean(values, "+.2f") for values in by_seed)
    rows.append((label, *means, len(by_seed[0])))
  printed = (paper_numbers.METRICS[metric] for metric in next(iter(gains.values())))
  return (f"gain over {baseline}, paired by seed", *printed, "seeds"), rows


def _scores_by_seed(data: CollectedResults, label: str) -> dict[int, runs.Scores]:
  return {
    run.seed: runs.scores_of(results, data.options, run.folder)
    for run, results in data.finished(label)
  }
