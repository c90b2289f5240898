"""Precision of the mined relations, from the logs of finished runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.paper import runs
from experiments.paper.collect import CollectedResults
from experiments.paper.report import Row


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


def final_row(
  data: CollectedResults,
  label: str,
  kind: str,
  by_seed: Sequence[Mapping[int, float]],
  published: float | None = None,
  shown: bool = True,
) -> Row:
  """The row of the precision in the last epoch, or in the last one that mined any relation.

  Args:
    data, label: of the setting.
    kind: "local" or "global".
    by_seed: of this kind, from `by_kind`.
    published: the paper's precision.
    shown: as in `Row`.
  """
  epochs = [max(by_epoch) for by_epoch in by_seed if by_epoch]
  num_epochs = data.runs[label][0].config.num_epochs
  measure = f"correct {kind} relations, last epoch"
  if any(epoch < num_epochs for epoch in epochs):
    which = " or ".join(map(str, sorted(set(epochs))))
    measure += f" with any ({which} of {num_epochs})"
  last = tuple(by_epoch[max(by_epoch)] for by_epoch in by_seed if by_epoch)
  return Row(label, measure, published, last, shown=shown)
