"""The datasets that finished runs are measured on: their own, or others."""

import dataclasses
import importlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments.paper import runs, tables


@dataclasses.dataclass(frozen=True)
class Target:
  """A dataset to measure on.

  Attributes:
    name: a key of `tables.DATASETS`.
    variant: of its config file, which may choose other people, for example; "" for none.
    source: folder of its files; "" if it is drawn or built.
  """

  name: str
  variant: str = ""
  source: str = ""

  @property
  def label(self) -> str:
    """NAME or NAME:VARIANT, as on the command line."""
    return _joined(self.name, self.variant)

  @property
  def title(self) -> str:
    """The same with the name as printed in the paper."""
    return _joined(tables.DATASETS[self.name].title, self.variant)


def own(options: runs.Options) -> Target:
  """The dataset that the runs are trained on."""
  return Target(options.dataset.name, options.variant)


def is_own(target: Target, options: runs.Options) -> bool:
  """Whether a target is the dataset of the runs: without a variant, its name stands for it."""
  return target.name == options.dataset.name and target.variant in ("", options.variant)


def of_experiment(
  experiment: tables.Experiment, options: runs.Options, named: Sequence[Target]
) -> list[Target]:
  """The datasets that an experiment measures on.

  The cross-dataset experiment uses all datasets that `--source` names and, for a benchmark of the
  paper, the other benchmarks. All other experiments use the runs' own dataset.
  """
  if experiment.measure != "cross_dataset":
    return [own(options)]
  others = {target.label: target for target in named if not is_own(target, options)}
  names = {target.name for target in named} | {options.dataset.name}
  implied = tables.BENCHMARKS if options.dataset.name in tables.BENCHMARKS else ()
  return [*(Target(name) for name in implied if name not in names), *others.values()]


def settings_of(target: Target, options: runs.Options, trained: ConfigDict) -> ConfigDict:
  """The `dataset` group of a target's config, with the image size of a run.

  Args:
    target: the dataset.
    options: of the run.
    trained: the `dataset` group of the run.
  """
  if target == own(options):
    return trained
  config = importlib.import_module(f"configs.{target.name}").get_config(target.variant)
  settings = config.dataset
  settings.image_size, settings.resize = trained.image_size, trained.resize
  settings.data_dir, settings.source = trained.data_dir, target.source
  return settings


def _joined(name: str, variant: str) -> str:
  return f"{name}:{variant}" if variant else name
