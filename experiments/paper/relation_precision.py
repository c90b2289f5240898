"""Precision of the mined relations, from the logs of finished runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.paper import runs
from experiments.paper.collect import CollectedResults


def by_kind(data: CollectedResults, label: str) -> dict[str, list[dict[int, float]]]:
  """{"local" or "global": {epoch: percent} of each finished seed}."""
  logs = [runs.metrics(run) for run, _ in data.finished(label)]
  return {kind: [by_epoch(log, kind) for log in logs] for kind in ("local", "global")}


def by_epoch(log: Sequence[Mapping[str, Any]], kind: str) -> dict[int, float]:
  """Precision of each epoch in percent, from the lines of metrics.jsonl.

  A line holds the precision and the mean number of relations per pair since the previous line.
  The average over an epoch weights each line by this number and by its steps.
  """
  correct, mined, previous_step = {}, {}, 0
  for line in log:
    if line["split"] != "train":
      continue
    steps, previous_step = line["step"] - previous_step, line["step"]
    precision = line.get(f"{kind}_precision")
    if precision is None:
      continue
    weight = steps * line[f"{kind}_relations"]
    epoch = line["epoch"]
    correct[epoch] = correct.get(epoch, 0.0) + weight * precision
    mined[epoch] = mined.get(epoch, 0.0) + weight
  return {epoch: correct[epoch] / mined[epoch] for epoch in correct if mined[epoch]}
