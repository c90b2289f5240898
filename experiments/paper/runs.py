"""One setting with one seed: its config, its folder, its command, and what it left behind.

Two settings that come to the same config are the same run, whichever tables they stand in: the
folder is found by a digest of all fields that differ from the defaults.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import json
import pathlib
import re

import ml_collections

from dgia_jax import config as config_lib
from dgia_jax.errors import UserError
from dgia_jax.training import workdir as workdir_lib
from experiments.paper import tables

LOG = "log.txt"
START = "start"  # label of the run that others take their weights from


@dataclasses.dataclass(frozen=True)
class Options:
  """What a command line says about all runs of one dataset.

  Attributes:
    dataset: tables.Dataset.
    workdir: folder of everything.
    seeds: of the runs.
    variant: of the config file, "" for none.
    schedule: a name in `dataset.schedules`, or "" for the config's own.
    overrides: {config field: value} for every run; a setting's own fields come after them.
    protocol: a name in `tables.PROTOCOLS`.
    split: whose scores are tabulated: test, or val to choose settings by.
  """

  dataset: tables.Dataset
  workdir: pathlib.Path
  seeds: tuple = (0,)
  variant: str = ""
  schedule: str = ""
  overrides: dict = dataclasses.field(default_factory=dict)
  protocol: str = "last"
  split: str = "test"


@dataclasses.dataclass(frozen=True)
class ExperimentRun:
  """A run that is made or is to be made.

  Attributes:
    name: readable, without the seed.
    seed: of the run.
    folder: its work directory.
    config: resolved.
    arguments: of `python`, one string each, that train it.
    start: the ExperimentRun whose weights it starts from, to be made first; None for none.
  """

  name: str
  seed: int
  folder: pathlib.Path
  config: ml_collections.ConfigDict
  arguments: tuple
  start: "ExperimentRun | None" = None

  @property
  def title(self):
    """For people."""
    return f"{self.name} seed {self.seed}"


def parse_overrides(texts):
  """["field=value"] -> {field: value}; a value that is no Python literal is text.

  Raises:
    UserError: for text without "=", and for the seed, which has its own flag.
  """
  fields = {}
  for text in texts:
    name, equals, value = text.partition("=")
    name = name.removeprefix("config.")
    if not equals or not name:
      raise UserError(f"--set {text}: give FIELD=VALUE, such as --set num_epochs=3")
    if name == "seed":
      raise UserError("--set seed: give seeds with --seeds 0,1,2")
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      pass  # plain text, such as a path
    if isinstance(value, dict | set):
      raise UserError(f"--set {text}: give single fields, such as --set {name}.FIELD=VALUE")
    fields[name] = tuple(value) if isinstance(value, list) else value
  return fields


def schedule_of(options):
  """tables.Schedule of the options; one without fields for the config's own."""
  if not options.schedule:
    return tables.Schedule({})
  return options.dataset.schedules[options.schedule]


def fields_of(options, setting, seed):
  """{config field: value} that a run changes in its dataset's config file."""
  common = tables.COMMON | schedule_of(options).fields | options.overrides
  start = start_of(options, seed)
  if start is not None:
    common |= {"pretrained": str(start.folder)}
  return common | setting.fields | {"seed": seed}


def start_of(options, seed):
  """The run whose weights all others of a seed start from; None without a start."""
  fields = schedule_of(options).start
  if fields is None:
    return None
  own = dataclasses.replace(options, schedule="")  # its fields are all in `start`
  return make_run(own, tables.Setting(START, fields), seed)


def resolve(options, setting, seed):
  """The run's config, checked.

  Raises:
    UserError: a field is unknown or its value cannot work.
  """
  config = importlib.import_module(f"configs.{options.dataset.config}").get_config(options.variant)
  for name, value in fields_of(options, setting, seed).items():
    try:
      config.update_from_flattened_dict({name: value})
    except (KeyError, AttributeError, TypeError, ValueError) as error:
      # ml_collections lists all fields in between: its first sentence and its guess are enough.
      lines = str(error.args[0] if error.args else error).splitlines()
      hint = f" ({lines[-1]})" if lines[-1].startswith("Did you mean") else ""
      reason = lines[0].split(" Other fields present")[0] + hint
      raise UserError(f"--set {name}={value}: {reason}") from error
  config_lib.check(config)
  return config


def digest(config, start=None):
  """Eight hex digits that are equal for configs that compute the same, but for the seed.

  Taken over the fields that differ from the defaults, so that a field that is added later, with a
  default that changes nothing, leaves finished runs their folders.

  Args:
    config: resolved.
    start: the ExperimentRun it starts from, wherever that lies; None for none.
  """
  base = config_lib.base()
  names = [name for name in config_lib.differences(config, base) if name != "seed"]
  values = {name: _value(config, name) for name in names}
  if start is not None:
    values["pretrained"] = digest(start.config)
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def make_run(options, setting, seed):
  """The run of a setting and a seed.

  Raises:
    UserError: as `resolve`.
  """
  config, start = resolve(options, setting, seed), start_of(options, seed)
  key = _key(config, start, setting)
  name = _name(options, key, setting.label)
  parent = options.workdir / "runs" / options.dataset.name
  found = sorted(parent.glob(f"*.{key}.seed{seed}"))
  folder = found[0] if found else parent / f"{name}.{key}.seed{seed}"
  arguments = tuple(_arguments(options, setting, seed, folder))
  return ExperimentRun(name, seed, folder, config, arguments, start)


def _key(config, start, setting):
  """What tells runs of different settings apart, whatever their seeds."""
  return digest(config, start) + (f"-{setting.oracle}" if setting.oracle else "")


def _name(options, key, label):
  """The label by which a config is first declared, as part of a folder's name."""
  first = _first_labels(
    options.dataset.name,
    options.variant,
    options.schedule,
    tuple(sorted(options.overrides.items())),
  )
  return re.sub(r"[^A-Za-z0-9.+-]+", "_", first.get(key, label))


@functools.cache
def _first_labels(dataset, variant, schedule, overrides):
  """{key: label} over all declared settings."""
  options = Options(
    tables.DATASETS[dataset],
    pathlib.Path(),
    variant=variant,
    schedule=schedule,
    overrides=dict(overrides),
  )
  labels = {}
  for experiment in tables.EXPERIMENTS.values():
    for setting in experiment.settings:
      if experiment.form == "mask_ratio":
        setting = dataclasses.replace(setting, label=f"mask-{setting.label}")
      key = _key(resolve(options, setting, 0), start_of(options, 0), setting)
      labels.setdefault(key, setting.label)
  return labels


def _arguments(options, setting, seed, folder):
  variant = f":{options.variant}" if options.variant else ""
  module = ["dgia_jax.main"]
  if setting.oracle:
    module = ["experiments.oracle.train", f"--oracle={setting.oracle}"]
  yield from ("-m", *module)
  yield f"--config=configs/{options.dataset.config}.py{variant}"
  yield f"--workdir={folder}"
  for name, value in fields_of(options, setting, seed).items():
    yield f"--config.{name}={value}"


def results(run):
  """What results.json of a finished run holds; None while it is not finished.

  Raises:
    UserError: the file is damaged, or the folder holds a run of another config.
  """
  path = run.folder / workdir_lib.RESULTS
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
    finished = found["last"]["epoch"] == run.config.num_epochs
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path} cannot be read ({type(error).__name__}: {error}): delete the folder to train again"
    ) from error
  _check_config(run)
  return found if finished else None


def metrics(run):
  """The lines of metrics.jsonl, one dict each; a last line cut short by a kill is left out.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = run.folder / workdir_lib.METRICS
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read ({error}): delete the folder to train again") from error
  found = []
  for number, line in enumerate(lines, 1):
    try:
      found.append(json.loads(line))
    except ValueError as error:
      if number < len(lines):
        raise UserError(f"{path} line {number} is damaged: remove that line") from error
  return found


def scores_of(found, options, folder):
  """Text-to-image scores of results.json at the epoch that the protocol takes.

  Args:
    found: what `results` gave.
    options: Options.
    folder: of the run, for the message.

  Raises:
    UserError: the run has no such scores.
  """
  protocol = options.protocol
  try:
    if options.split == "val":
      return found["last_by_split"]["val"]["t2i"]
    if protocol == "last":
      return found["last"]["t2i"]
    return found["best_by_split"]["val" if protocol == "val" else "test"]["t2i"]
  except KeyError as error:
    raise UserError(
      f"{folder}: its {workdir_lib.RESULTS} has no {error} for --protocol {protocol}: "
      "choose --protocol last, or test_best where there is no val split"
    ) from error


def checkpoint_choice(run, protocol):
  """Which kept checkpoint, "last" or "best", is that of the protocol.

  Raises:
    UserError: the best that was kept is the best on another split.
  """
  if protocol == "last":
    return "last"
  split = "val" if protocol == "val" else "test"
  if run.config.eval.select_on != split:
    raise UserError(
      f"--protocol {protocol}: the checkpoint kept by {run.folder} is the best on "
      f"{run.config.eval.select_on}; choose --protocol last, or train with "
      f"--set eval.select_on={split}"
    )
  return "best"


def _check_config(run):
  stored = workdir_lib.read_config(run.folder)
  base = config_lib.base()
  # A field that the stored config lacks was added after the run; at its default it changes nothing.
  changed = [
    name
    for name in config_lib.differences(run.config, stored)
    if not (name == "pretrained" and run.start)  # the same run, by another path
    and _value(stored, name, missing=_value(base, name, missing=None)) != _value(run.config, name)
  ]
  if changed:
    raise UserError(
      f"{run.folder} holds a run with another config (differing: {', '.join(changed[:6])}): "
      "delete it, or choose another --workdir"
    )


def _value(config, name, **missing):
  """A field of a config or of nested dicts, tuples as lists; `missing=` where there is none."""
  value = config
  for part in name.split("."):
    if "missing" in missing and part not in value:
      return missing["missing"]
    value = value[part]
  return list(value) if isinstance(value, tuple | list) else value
