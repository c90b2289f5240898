"""Reads the finished runs of an experiment and takes the measurements that its report needs."""

import dataclasses
import functools
import importlib
import json

from dgia_jax import files
from dgia_jax.errors import UserError
from experiments.paper import runs, tables

MEASURES = "measures"  # folder inside a run's folder


@dataclasses.dataclass(frozen=True)
class CollectedResults:
  """Everything a report is made from.

  Attributes:
    experiment: tables.Experiment.
    options: runs.Options.
    sources: {dataset name: folder of its files}, for tests on other datasets.
    runs: {label: [ExperimentRun of each seed]}.
    results: {run folder: what results.json holds} of finished runs.
    measures: {run folder: {target dataset: what was measured}} of measured runs.
    problems: sentences on what could not be measured.
  """

  experiment: tables.Experiment
  options: runs.Options
  sources: dict
  runs: dict
  results: dict
  measures: dict = dataclasses.field(default_factory=dict)
  problems: list = dataclasses.field(default_factory=list)

  @property
  def title(self):
    """By which the paper's numbers are found; "" for scores on val, which the paper has none of."""
    return self.options.dataset.title if self.options.split == "test" else ""

  def finished(self, label):
    """[(ExperimentRun, results)] of a setting's finished seeds, in the order of the seeds."""
    return [
      (run, self.results[run.folder]) for run in self.runs[label] if run.folder in self.results
    ]

  def scores(self, label):
    """[{"R1", ..}] of a setting's finished seeds, at the epoch the protocol takes."""
    return [runs.scores_of(found, self.options, run.folder) for run, found in self.finished(label)]

  def measured(self, label, target=None):
    """What was measured on a setting's runs, one for each seed that has it."""
    target = target or self.options.dataset.name
    found = [self.measures.get(run.folder, {}).get(target) for run in self.runs[label]]
    return [values for values in found if values is not None]


def plan(experiment, options):
  """{label: [ExperimentRun of each seed]} of an experiment.

  Raises:
    UserError: a setting cannot work with the options.
  """
  return {
    setting.label: [runs.make_run(options, setting, seed) for seed in options.seeds]
    for setting in experiment.settings
  }


def collect(experiment, options, planned, sources, compute, say):
  """Reads what is there and, when asked to, measures what is missing.

  Args:
    experiment, options, sources: as in `CollectedResults`.
    planned: what `plan` gave.
    compute: False to use measures already taken only.
    say: function (text) that prints one line.

  Returns:
    CollectedResults.

  Raises:
    UserError: a run's folder cannot be read.
  """
  results = {}
  for run in {run.folder: run for made in planned.values() for run in made}.values():
    found = runs.results(run)
    if found is not None:
      results[run.folder] = found
  collected = CollectedResults(experiment, options, sources, planned, results)
  if not experiment.measure:
    return collected
  module = importlib.import_module(f"experiments.paper.measures.{experiment.measure}")
  for target in targets(experiment, options, sources):
    for run in (run for made in planned.values() for run in made if run.folder in results):
      try:
        found = _measured(module, experiment, options, run, target, sources, compute, say)
      except UserError as error:
        message = f"{run.title}, {target}: not measured: {error}"
        say(message)
        collected.problems.append(message)
        continue
      if found is not None:
        collected.measures.setdefault(run.folder, {})[target] = found
  return collected


def targets(experiment, options, sources):
  """Names of the datasets an experiment measures on.

  Across datasets: the paper's others for one of the paper's, and all that `--source` names.
  """
  own = options.dataset.name
  if experiment.measure != "cross_dataset":
    return [own]
  others = tables.BENCHMARKS if own in tables.BENCHMARKS else ()
  return [name for name in dict.fromkeys((*others, *sources)) if name != own]


def _measured(module, experiment, options, run, target, sources, compute, say):
  """A measure from its file, or taken now and written there; None when it may not be taken."""
  choice = runs.checkpoint_choice(run, options.protocol)
  across = "" if target == options.dataset.name else f"-{target}"
  path = run.folder / MEASURES / f"{experiment.name}{across}-{choice}.json"
  if path.exists():
    try:
      return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
      raise UserError(f"{path} is damaged ({error}): delete it") from error
  if not compute:
    return None
  say(f"{run.title}: measuring {experiment.name}{across}")
  splits = {"test": _test_pairs(run, options, target, sources.get(target, ""))}
  found = module.measure(run.config, run.folder, splits, choice)
  path.parent.mkdir(exist_ok=True)
  files.write_json(path, found)
  return found


def _test_pairs(run, options, target, source):
  """The test pairs of a dataset at the run's image size."""
  settings = run.config.dataset
  if target != options.dataset.name:
    file = tables.DATASETS[target].config
    settings = importlib.import_module(f"configs.{file}").get_config().dataset
    settings.image_size = run.config.dataset.image_size
    settings.resize = run.config.dataset.resize
    settings.data_dir, settings.source = run.config.dataset.data_dir, source
  return _load_test_pairs(settings.to_json())


@functools.lru_cache(maxsize=1)
def _load_test_pairs(settings):
  """Test pairs for a config's `dataset` group given as JSON; runs of several seeds share them."""
  from dgia_jax.data import datasets, pairs

  settings = json.loads(settings)
  size = tuple(settings["image_size"])
  files = {name: settings[name] for name in ("source", "annotations", "images") if settings[name]}
  builder = datasets.load_builder(
    settings["name"],
    image_size=size,
    data_dir=settings["data_dir"],
    **files,
    **settings["options"],
  )
  return pairs.load_pairs(builder, "test", size, settings["resize"])
