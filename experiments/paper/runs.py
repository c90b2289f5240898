"""One setting with one seed: its config, folder, training command and stored results.

Two settings with the same resolved config are one run, even in different tables: the name of the
folder holds a digest of all fields that differ from the defaults.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import json
import operator
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax.errors import UserError
from dgia_jax.reporting import metrics_writer
from dgia_jax.training import workdir as workdir_lib
from experiments.paper import dataset_content, tables

LOG = "log.txt"
START = "start"  # label of the run from which others take their weights

# Split on which a protocol chooses the epoch; that of the last epoch chooses on none.
_SELECTED_ON = {"val": "val", "test_best": "test"}

Results = dict[str, Any]  # content of results.json
Scores = Mapping[str, float]  # metric -> percent


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of a command line, common to all runs of one dataset.

  Attributes:
    dataset: on which all runs are trained.
    workdir: folder of all runs and reports.
    seeds: one run per setting and seed.
    variant: of the config file, "" for none.
    schedule: a name in `dataset.schedules`, or "" for the config's own.
    overrides: {config field: value} for every run; a setting's own fields take precedence.
    protocol: a name in `tables.PROTOCOLS`.
    split: split of the reported scores: test, or val for choosing settings.
  """

  dataset: tables.Dataset
  workdir: pathlib.Path
  seeds: tuple[int, ...] = (0,)
  variant: str = ""
  schedule: str = ""
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  protocol: str = "last"
  split: str = "test"


@dataclasses.dataclass(frozen=True)
class ExperimentRun:
  """A run, finished or not.

  Attributes:
    name: readable, without the seed.
    seed: also part of `config`.
    folder: working directory of the run.
    config: the resolved config.
    arguments: of the `python` command that trains the run.
    start: the run that provides the initial weights and is trained first; None if there is none.
  """

  name: str
  seed: int
  folder: pathlib.Path
  config: ConfigDict
  arguments: tuple[str, ...]
  start: "ExperimentRun | None" = None

  @property
  def title(self) -> str:
    """Name and seed, for messages."""
    return f"{self.name} seed {self.seed}"


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
  """["field=value"] -> {field: value}; a value that is not a Python literal is text.

  Raises:
    UserError: "=" is missing, the value is or holds a dict, or the field is the seed (use
      `--seeds`).
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
      value = _with_tuples(ast.literal_eval(value))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      pass  # text, such as a path
    try:
      hash(value)
    except TypeError as error:  # a dict or a set
      raise UserError(
        f"--set {text}: give single fields, such as --set {name}.FIELD=VALUE"
      ) from error
    fields[name] = value
  return fields


def _with_tuples(value: Any) -> Any:
  """Lists as tuples, also inside others: the config has no lists, and overrides are hashed."""
  return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def schedule_of(options: Options) -> tables.Schedule:
  """The schedule of the options; an empty one for the config's own."""
  if not options.schedule:
    return tables.Schedule({})
  return options.dataset.schedules[options.schedule]


def fields_of(
  options: Options, setting: tables.Setting, seed: int, start: ExperimentRun | None
) -> dict[str, Any]:
  """{config field: value} that a run changes in its dataset's config; `start` is of `start_of`."""
  common = {**setting.needs, **tables.COMMON, **schedule_of(options).fields, **options.overrides}
  if start is not None:
    common |= {"pretrained": str(start.folder)}
  fields = common | setting.fields
  if setting.factors:
    config = resolve(options, fields)
    multiplied = lambda name: operator.attrgetter(name)(config) * setting.factors[name]
    fields |= {name: multiplied(name) for name in setting.factors}
  return fields | {"seed": seed}


def start_of(options: Options, seed: int) -> ExperimentRun | None:
  """The run from which all others of a seed start; None if the schedule has none."""
  fields = schedule_of(options).start
  if fields is None:
    return None
  own = dataclasses.replace(options, schedule="")  # `start` holds all fields
  return make_run(own, tables.Setting(START, fields), seed)


def resolve(options: Options, fields: Mapping[str, Any]) -> ConfigDict:
  """The checked config of the run with these `fields_of`.

  Raises:
    UserError: a field is unknown or its value is invalid.
  """
  config = importlib.import_module(f"configs.{options.dataset.name}").get_config(options.variant)
  for name, value in fields.items():
    try:
      config.update_from_flattened_dict({name: value})
    except (KeyError, AttributeError, TypeError, ValueError) as error:
      # Keep the first sentence and the suggestion; ml_collections lists all fields in between.
      lines = str(error.args[0] if error.args else error).splitlines()
      hint = f" ({lines[-1]})" if lines[-1].startswith("Did you mean") else ""
      reason = lines[0].split(" Other fields present")[0] + hint
      raise UserError(f"--set {name}={value}: {reason}") from error
  config_lib.check(config)
  return config


def digest(config: ConfigDict, start: ExperimentRun | None = None) -> str:
  """Eight hex digits, equal for configs that differ only in the seed or in where they run.

  The digest covers the fields that differ from the defaults. A field that is added later, with a
  default that changes nothing, therefore does not rename the folders of finished runs. The path of
  the run that provides the initial weights, `start`, does not matter; nor does the path of a user's
  own dataset, but its content does.

  Raises:
    UserError: the user's annotations cannot be read.
  """
  values = config_lib.changed_fields(config)
  if content := dataset_content.of_own_data(config.dataset):
    values["dataset.content"] = content
  if start is not None:
    values["pretrained"] = digest(start.config)
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def make_run(options: Options, setting: tables.Setting, seed: int) -> ExperimentRun:
  """The run of a setting and a seed.

  Raises:
    UserError: as `resolve`.
  """
  start = start_of(options, seed)
  fields = fields_of(options, setting, seed, start)
  config = resolve(options, fields)
  key = _key(config, start, setting)
  name = _name(options, key, setting.label)
  parent = options.workdir / "runs" / options.dataset.name
  existing = sorted(parent.glob(f"*.{key}.seed{seed}"))
  folder = existing[0] if existing else parent / f"{name}.{key}.seed{seed}"
  arguments = tuple(_arguments(options, setting, fields, folder))
  return ExperimentRun(name, seed, folder, config, arguments, start)


def check(options: Options) -> None:
  """Raises UserError if the options do not work by themselves, with the whole method."""
  for seed in options.seeds:
    make_run(options, tables.WHOLE, seed)


def _key(config: ConfigDict, start: ExperimentRun | None, setting: tables.Setting) -> str:
  """Identifies a setting in folder names, independently of the seed."""
  return digest(config, start) + (f"-{setting.oracle}" if setting.oracle else "")


def _name(options: Options, key: str, label: str) -> str:
  """The label with which a config is first declared, made safe for a folder name."""
  first_labels = _first_labels(
    options.dataset.name,
    options.variant,
    options.schedule,
    tuple(sorted(options.overrides.items())),
  )
  return re.sub(r"[^A-Za-z0-9.+-]+", "_", first_labels.get(key, label))


@functools.cache
def _first_labels(
  dataset: str, variant: str, schedule: str, overrides: tuple[tuple[str, Any], ...]
) -> dict[str, str]:
  """{key: label} of all declared settings that the options allow."""
  options = Options(
    tables.DATASETS[dataset],
    pathlib.Path(),
    variant=variant,
    schedule=schedule,
    overrides=dict(overrides),
  )
  labels, start = {}, start_of(options, 0)
  for experiment in tables.EXPERIMENTS.values():
    for setting in experiment.settings:
      if experiment.form == "mask_ratio":
        setting = dataclasses.replace(setting, label=f"mask-{setting.label}")
      try:
        config = resolve(options, fields_of(options, setting, 0, start))
      except UserError:  # there is no such run
        continue
      labels.setdefault(_key(config, start, setting), setting.label)
  return labels


def _arguments(
  options: Options, setting: tables.Setting, fields: Mapping[str, Any], folder: pathlib.Path
) -> Iterator[str]:
  """Arguments of the `python` command that trains a run."""
  variant = f":{options.variant}" if options.variant else ""
  module = ["dgia_jax.main"]
  if setting.oracle:
    module = ["experiments.oracle.train", f"--oracle={setting.oracle}"]
  yield from ("-m", *module)
  yield f"--config=configs/{options.dataset.name}.py{variant}"
  yield f"--workdir={folder}"
  for name, value in fields.items():
    yield f"--config.{name}={value}"


def results(run: ExperimentRun) -> Results | None:
  """Content of a finished run's results.json; None if the run is not finished.

  Raises:
    UserError: the file is damaged or cannot be read, or the folder holds a run with another config.
  """
  path = run.folder / workdir_lib.RESULTS
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    # An evaluation in mid-run writes the file, too, but without the scores by split.
    finished = content["last"]["epoch"] == run.config.num_epochs and "last_by_split" in content
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error}): choose another --workdir") from error
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path} cannot be read ({type(error).__name__}: {error}): "
      "delete the folder to train it again"
    ) from error
  _check_config(run)
  return content if finished else None


def metrics(run: ExperimentRun) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; an incomplete last line, left by a killed run, is skipped.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = run.folder / metrics_writer.METRICS
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{path} cannot be read ({error}): delete the folder to train it again"
    ) from error
  parsed = []
  for number, line in enumerate(lines, 1):
    try:
      parsed.append(json.loads(line))
    except ValueError as error:
      if number < len(lines):
        raise UserError(f"{path} line {number} is damaged: remove that line") from error
  return parsed


def scores_of(results: Results, options: Options, folder: pathlib.Path) -> Scores:
  """Text-to-image scores of results.json, at the epoch that the protocol selects.

  Raises:
    UserError: the run has no such scores; the message names its `folder`.
  """
  protocol = options.protocol
  try:
    if options.split == "val":
      return results["last_by_split"]["val"]["t2i"]
    if protocol == "last":
      return results["last"]["t2i"]
    return results["best_by_split"][_SELECTED_ON[protocol]]["t2i"]
  except KeyError as error:
    raise UserError(
      f"{folder}: its {workdir_lib.RESULTS} has no {error} for --protocol {protocol}: "
      "choose --protocol last, or test_best where there is no val split"
    ) from error


def default_protocol(options: Options) -> str:
  """The protocol that chooses the epoch as the config does (`eval.select_on`).

  Raises:
    UserError: as `resolve`.
  """
  config = resolve(options, fields_of(options, tables.WHOLE, options.seeds[0], None))
  return _protocol_of(config)


def _protocol_of(config: ConfigDict) -> str:
  """The protocol of the checkpoint that a run keeps as its best."""
  protocols = {split: protocol for protocol, split in _SELECTED_ON.items()}
  return protocols[config.eval.select_on]


def checkpoint_choice(run: ExperimentRun, protocol: str) -> str:
  """The stored checkpoint that matches the protocol: "last" or "best".

  Raises:
    UserError: the stored best checkpoint was chosen on another split.
  """
  if protocol == "last":
    return "last"
  split = _SELECTED_ON[protocol]
  if run.config.eval.select_on != split:
    raise UserError(
      f"--protocol {protocol}: the checkpoint kept by {run.folder} is the best on "
      f"{run.config.eval.select_on}; choose --protocol {_protocol_of(run.config)} or last, or "
      f"train with --set eval.select_on={split}"
    )
  return "best"


def _check_config(run: ExperimentRun) -> None:
  """Raises UserError if the folder holds a run with another config."""
  stored = workdir_lib.read_config(run.folder)
  changed = [
    name
    for name in config_lib.differences(run.config, stored)
    if not (name == "pretrained" and run.start)  # the same run under another path
  ]
  if changed:
    raise UserError(
      f"{run.folder} holds a run with another config (differing: {', '.join(changed[:6])}): "
      "delete it, or choose another --workdir"
    )
