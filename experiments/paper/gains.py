"""What each setting of an experiment gains over the first, seed by seed."""

import numpy as np

from experiments.paper import runs


def by_setting(collected, metrics):
  """{label: {metric: gains over the first setting}}, of the settings with a seed in common.

  Taken seed by seed: runs of one seed share order, views and, where there is one, their start, so
  that much of what differs between seeds cancels.
  """
  first, *others = (setting.label for setting in collected.experiment.settings)
  scores_by_seed = lambda label: {
    run.seed: runs.scores_of(found, collected.options, run.folder)
    for run, found in collected.finished(label)
  }
  base, gains = scores_by_seed(first), {}
  for label in others:
    scores = scores_by_seed(label)
    seeds = sorted(base.keys() & scores.keys())
    if seeds:
      gains[label] = {
        name: tuple(scores[seed][name] - base[seed][name] for seed in seeds) for name in metrics
      }
  return gains


def table(collected, metrics):
  """Table of what each setting gains over the first, or None when no seed is in common."""
  rows = []
  for label, gains in by_setting(collected, metrics).items():
    cells = []
    for values in gains.values():
      spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
      cells.append(f"{np.mean(values):+.2f}{spread}")
    rows.append((label, *cells, len(values)))
  first = collected.experiment.settings[0].label
  header = (f"gain over {first}, seed by seed", *(f"of {name}" for name in metrics), "seeds")
  return (header, rows) if rows else None
