"""Takes a measurement of a finished run, or reads it if it is stored in the run's folder.

The file is named after the experiment, another dataset with its variant, the split unless it is
test, and the checkpoint. For another dataset it records which data were measured, because the run's
folder says nothing about them: a measurement on other data is taken again.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dgia_jax import files
from dgia_jax.data import pairs as pairs_lib
from dgia_jax.errors import UserError
from dgia_jax.training import inputs
from experiments.paper import dataset_content, runs, targets
from experiments.paper.runs import ExperimentRun
from experiments.paper.targets import Target

FOLDER = "measures"  # inside a run's folder
DATA = "data"  # key of the description of another dataset

Measure = Callable[..., dict[str, Any]]  # as in `measures`


def stored_or_new(
  measure: Measure,
  name: str,
  options: runs.Options,
  run: ExperimentRun,
  target: Target,
  compute: bool,
  print_line: Callable[[str], None],
) -> dict[str, Any] | None:
  """A stored measurement, or a new one, which is stored; None if it is missing and not computed.

  Args:
    measure: takes the measurement.
    name: of the experiment.
    options: of the run; they choose the split.
    run: a finished run.
    target: the dataset to measure on.
    compute: False uses stored measurements only.
    print_line: receives lines of progress.

  Raises:
    UserError: the file is damaged, the stored measurement is of other data and `compute` is False,
      or the data or the run cannot be read.
  """
  choice = runs.checkpoint_choice(run, options.protocol)
  settings = targets.settings_of(target, options, run.config.dataset)
  is_other = target != targets.own(options)
  path = run.folder / FOLDER / _file_name(name, target if is_other else None, options.split, choice)
  stored = _read(path)
  if stored is not None:
    is_same = not is_other or _is_of(stored.get(DATA), settings, compute)
    if is_same:
      return stored
    if not compute:
      raise UserError(
        f"{path} was measured on other data ({stored[DATA]['source'] or 'a build'}): run without"
        " --report_only to measure it again"
      )
  elif not compute:
    return None
  print_line(f"{run.title}: measuring {path.stem.removesuffix(f'-{choice}')}")
  pairs, build = _load_pairs(settings.to_json(), options.split)
  measurement = measure(run.config, run.folder, {"test": pairs}, choice)
  if is_other:
    content = dataset_content.identify(settings) | {"build": build}
    source = str(pathlib.Path(target.source).absolute()) if target.source else ""
    description = {"dataset": target.label, "source": source, "content": content}
    measurement = measurement | {DATA: description}
  path.parent.mkdir(exist_ok=True)
  files.write_json(path, measurement)
  return measurement


def _file_name(name: str, other: Target | None, split: str, choice: str) -> str:
  parts = [name]
  if other is not None:
    parts += [other.name, other.variant]
  parts += ["" if split == "test" else split, choice]
  return "-".join(filter(None, parts)) + ".json"


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """A stored measurement; None if there is none."""
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path} is damaged ({error}): delete it") from error


def _is_of(description: dict[str, Any] | None, settings: ConfigDict, compute: bool) -> bool:
  """Whether a measurement is of the data that these settings lead to.

  An earlier release did not store a description. Data that are not here cannot be compared, which
  matters only where they are measured again.
  """
  if description is None:
    return True
  try:
    content = dataset_content.identify(settings)
  except UserError:
    if compute:
      raise
    return True
  return all(description["content"].get(name) == value for name, value in content.items())


@functools.lru_cache(maxsize=1)
def _load_pairs(settings_json: str, split: str) -> tuple[pairs_lib.PairTable, str]:
  """The pairs of a `dataset` group and the name of its build; cached for runs of several seeds."""
  config = ConfigDict({"dataset": json.loads(settings_json)})
  builder, settings = inputs.load_builder(config), config.dataset
  if split not in builder.info.splits:
    raise UserError(f"dataset {settings.name} has no {split} split")
  pairs = pairs_lib.load_pairs(builder, split, tuple(settings.image_size), settings.resize)
  return pairs, pathlib.Path(builder.data_path).parent.name
