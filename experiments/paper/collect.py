"""Reads the runs of an experiment and takes the measurements that its table needs."""

import dataclasses
import functools
import importlib
import json
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dgia_jax import files
from dgia_jax.data import pairs as pairs_lib
from dgia_jax.errors import UserError
from dgia_jax.training import inputs
from experiments.paper import runs, tables
from experiments.paper.runs import ExperimentRun

MEASURES = "measures"  # folder inside a run's folder

RunsByLabel = Mapping[str, Sequence[ExperimentRun]]  # one run per seed
Sources = Mapping[str, str]  # dataset name -> folder of its files


class Plan(NamedTuple):
  """The runs of an experiment.

  Attributes:
    experiment: with the settings that the options allow.
    runs: of these settings.
    conflicts: {label of any other setting: why the options exclude it}.
  """

  experiment: tables.Experiment
  runs: RunsByLabel
  conflicts: Mapping[str, str]

  @property
  def not_applicable(self) -> str:
    """The excluded settings and a reason, in one line; "" if there are none."""
    if not self.conflicts:
      return ""
    reason = next(iter(self.conflicts.values()))
    return f"not applicable with these options: {', '.join(self.conflicts)} ({reason})"


@dataclasses.dataclass(frozen=True)
class CollectedResults:
  """All numbers from which a table or figure is made.

  Attributes:
    experiment: the table or figure.
    options: of all runs.
    sources: folders of the other datasets to test on.
    runs: the runs of each setting.
    results: results.json of each finished run, by run folder.
    measurements: {run folder: {target dataset: measurement}}.
    problems: one sentence for each measurement that failed.
    not_applicable: the settings that the options exclude, in one line; "" if there are none.
  """

  experiment: tables.Experiment
  options: runs.Options
  sources: Sources
  runs: RunsByLabel
  results: Mapping[pathlib.Path, runs.Results]
  measurements: dict[pathlib.Path, dict[str, Any]] = dataclasses.field(default_factory=dict)
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

  def measured(self, label: str, target: str = "") -> list[Any]:
    """Measurements of a setting's runs on a dataset (default: the runs' own)."""
    target = target or self.options.dataset.name
    by_run = [self.measurements.get(run.folder, {}).get(target) for run in self.runs[label]]
    return [measurement for measurement in by_run if measurement is not None]


def plan(experiment: tables.Experiment, options: runs.Options) -> Plan:
  """The runs of an experiment. A variant may exclude settings: `:plus` has no gated bank, say.

  Raises:
    UserError: the options do not work with any setting.
  """
  planned, conflicts = {}, {}
  for setting in experiment.settings:
    try:
      planned[setting.label] = [runs.make_run(options, setting, seed) for seed in options.seeds]
    except UserError as error:
      runs.check(options)  # otherwise it is not the setting's fault
      conflicts[setting.label] = str(error)
  allowed = tuple(setting for setting in experiment.settings if setting.label in planned)
  return Plan(dataclasses.replace(experiment, settings=allowed), planned, conflicts)


def collect(
  plan: Plan,
  options: runs.Options,
  sources: Sources,
  compute: bool,
  print_line: Callable[[str], None],
) -> CollectedResults:
  """Reads the finished runs and takes the missing measurements.

  Args:
    plan: from the function `plan`.
    options, sources: as in `CollectedResults`.
    compute: False uses stored measurements only.
    print_line: receives lines of progress.

  Raises:
    UserError: a run's folder cannot be read.
  """
  experiment = plan.experiment
  distinct = {run.folder: run for seeds in plan.runs.values() for run in seeds}.values()
  results = {run.folder: runs.results(run) for run in distinct}
  results = {folder: content for folder, content in results.items() if content is not None}
  data = CollectedResults(
    experiment, options, sources, plan.runs, results, not_applicable=plan.not_applicable
  )
  if not experiment.measure:
    return data
  module = importlib.import_module(f"experiments.paper.measures.{experiment.measure}")
  for target in targets(experiment, options, sources):
    for run in (run for run in distinct if run.folder in results):
      try:
        measurement = _measured(module, data, run, target, compute, print_line)
      except UserError as error:
        problem = f"{run.title}, {target}: not measured: {error}"
        print_line(problem)
        data.problems.append(problem)
        continue
      if measurement is not None:
        data.measurements.setdefault(run.folder, {})[target] = measurement
  return data


def targets(experiment: tables.Experiment, options: runs.Options, sources: Sources) -> list[str]:
  """Names of the datasets that an experiment measures on.

  The cross-dataset experiment uses all datasets of `--source` and, for a benchmark of the paper,
  the other benchmarks. All other experiments use the runs' own dataset.
  """
  own = options.dataset.name
  if experiment.measure != "cross_dataset":
    return [own]
  others = tables.BENCHMARKS if own in tables.BENCHMARKS else ()
  return [name for name in dict.fromkeys((*others, *sources)) if name != own]


def _measured(
  module: types.ModuleType,
  data: CollectedResults,
  run: ExperimentRun,
  target: str,
  compute: bool,
  print_line: Callable[[str], None],
) -> Any:
  """A stored measurement, or a new one, which is stored; None if it is missing and not computed."""
  options = data.options
  choice = runs.checkpoint_choice(run, options.protocol)
  name = data.experiment.name + ("" if target == options.dataset.name else f"-{target}")
  path = run.folder / MEASURES / f"{name}-{choice}.json"
  if path.exists():
    try:
      return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
      raise UserError(f"{path} is damaged ({error}): delete it") from error
  if not compute:
    return None
  print_line(f"{run.title}: measuring {name}")
  splits = {"test": _test_pairs(run, options, target, data.sources.get(target, ""))}
  measurement = module.measure(run.config, run.folder, splits, choice)
  path.parent.mkdir(exist_ok=True)
  files.write_json(path, measurement)
  return measurement


def _test_pairs(
  run: ExperimentRun, options: runs.Options, target: str, source: str
) -> pairs_lib.PairTable:
  """The test pairs of a dataset, at the run's image size."""
  settings = run.config.dataset
  if target != options.dataset.name:
    settings = importlib.import_module(f"configs.{target}").get_config().dataset
    settings.image_size = run.config.dataset.image_size
    settings.resize = run.config.dataset.resize
    settings.data_dir, settings.source = run.config.dataset.data_dir, source
  return _load_test_pairs(settings.to_json())


@functools.lru_cache(maxsize=1)
def _load_test_pairs(settings_json: str) -> pairs_lib.PairTable:
  """The test pairs of a config's `dataset` group; cached because runs of several seeds share it."""

  config = ConfigDict({"dataset": json.loads(settings_json)})
  builder, settings = inputs.load_builder(config), config.dataset
  return pairs_lib.load_pairs(builder, "test", tuple(settings.image_size), settings.resize)
