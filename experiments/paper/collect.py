"""Reads the runs of an experiment and takes the measurements that its table needs."""

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dgia_jax.errors import UserError
from experiments.paper import measuring, runs, tables, targets
from experiments.paper.runs import ExperimentRun
from experiments.paper.targets import Target

RunsByLabel = Mapping[str, Sequence[ExperimentRun]]  # one run per seed


class Plan(NamedTuple):
  """The runs of an experiment.

  Attributes:
    experiment: with the settings that the options allow.
    runs: of these settings.
    conflicts: {label of any other setting: why it is excluded}.
  """

  experiment: tables.Experiment
  runs: RunsByLabel
  conflicts: Mapping[str, str]

  @property
  def not_applicable(self) -> str:
    """The excluded settings and their reasons, in one line; "" if there are none."""
    by_kind = {}  # reasons that differ in values only are of one kind
    for label, reason in self.conflicts.items():
      by_kind.setdefault(re.sub(r"=\S+", "", reason), []).append(label)
    parts = [f"{', '.join(ls)} ({self.conflicts[ls[0]]})" for ls in by_kind.values()]
    return f"not applicable with these options: {'; '.join(parts)}" if parts else ""


@dataclasses.dataclass(frozen=True)
class CollectedResults:
  """All numbers from which a table or figure is made.

  Attributes:
    experiment: the table or figure.
    options: of all runs.
    targets: the datasets to measure on; without a measurement, none.
    runs: the runs of each setting.
    results: results.json of each finished run, by run folder.
    measurements: {run folder: {target: measurement}}.
    problems: one sentence for each measurement that failed.
    not_applicable: the settings that the options exclude, in one line; "" if there are none.
  """

  experiment: tables.Experiment
  options: runs.Options
  targets: Sequence[Target]
  runs: RunsByLabel
  results: Mapping[pathlib.Path, runs.Results]
  measurements: dict[pathlib.Path, dict[Target, Any]] = dataclasses.field(default_factory=dict)
  problems: list[str] = dataclasses.field(default_factory=list)
  not_applicable: str = ""

  @property
  def paper_title(self) -> str:
    """Key of the dataset's published numbers; "" for val scores, which the paper lacks."""
    return self.options.dataset.title if self.options.split == "test" else ""

  def finished(self, label: str) -> list[tuple[ExperimentRun, runs.Results]]:
    """The finished runs of a setting with their results, in the order of the seeds."""
    return [
      (run, self.results[run.folder]) for run in self.runs[label] if run.folder in self.results
    ]

  def scores(self, label: str) -> list[runs.Scores]:
    """Scores of a setting's finished runs, at the epoch that the protocol selects."""
    return [
      runs.scores_of(results, self.options, run.folder) for run, results in self.finished(label)
    ]

  def measured(self, label: str, target: Target | None = None) -> list[Any]:
    """Measurements of a setting's runs on a dataset (default: the runs' own)."""
    target = target or targets.own(self.options)
    by_run = [self.measurements.get(run.folder, {}).get(target) for run in self.runs[label]]
    return [measurement for measurement in by_run if measurement is not None]


def plan(experiment: tables.Experiment, options: runs.Options) -> Plan:
  """The runs of an experiment. A variant may exclude settings: `:plus` has no gated bank, say.

  A setting that the options make the same run as an earlier one is excluded, too.

  Raises:
    UserError: the options do not work with any setting.
  """
  planned, conflicts, labels = {}, {}, {}
  for setting in experiment.settings:
    try:
      of_seeds = [runs.make_run(options, setting, seed) for seed in options.seeds]
    except UserError as error:
      runs.check(options)  # otherwise it is not the setting's fault
      conflicts[setting.label] = str(error)
      continue
    earlier = labels.setdefault(of_seeds[0].folder, setting.label)
    if earlier == setting.label:
      planned[setting.label] = of_seeds
    else:
      conflicts[setting.label] = f"the same run as {earlier}"
  allowed = tuple(setting for setting in experiment.settings if setting.label in planned)
  return Plan(dataclasses.replace(experiment, settings=allowed), planned, conflicts)


def collect(
  plan: Plan,
  options: runs.Options,
  named: Sequence[Target],
  compute: bool,
  print_line: Callable[[str], None],
) -> CollectedResults:
  """Reads the finished runs and takes the missing measurements.

  Args:
    plan: from the function `plan`.
    options: of all runs.
    named: the datasets of `--source`.
    compute: False uses stored measurements only.
    print_line: receives lines of progress.

  Raises:
    UserError: a run's folder cannot be read.
  """
  experiment = plan.experiment
  distinct = {run.folder: run for seeds in plan.runs.values() for run in seeds}.values()
  results = {run.folder: runs.results(run) for run in distinct}
  results = {folder: content for folder, content in results.items() if content is not None}
  measured_on = targets.of_experiment(experiment, options, named) if experiment.measure else []
  data = CollectedResults(
    experiment, options, measured_on, plan.runs, results, not_applicable=plan.not_applicable
  )
  for target in measured_on:
    module = importlib.import_module(f"experiments.paper.measures.{experiment.measure}")
    for run in (run for run in distinct if run.folder in results):
      try:
        measurement = measuring.stored_or_new(
          module.measure, experiment.name, options, run, target, compute, print_line
        )
      except UserError as error:
        problem = f"{run.title}, {target.label}: not measured: {error}"
        print_line(problem)
        data.problems.append(problem)
        continue
      if measurement is not None:
        data.measurements.setdefault(run.folder, {})[target] = measurement
  return data
