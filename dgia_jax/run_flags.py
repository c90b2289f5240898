"""The flags of a run: `--config` by name or file, its settings, and hints where a name is wrong.

`--config NAME[:variant]` names a config that the package carries; `--config FILE.py[:variant]` is
any other.
"""

import ast
import contextlib
import keyword
import pathlib
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from dgia_jax import config as config_lib
from dgia_jax import older_names, user_files
from dgia_jax.errors import UserError

FLAGS = flags.FLAGS
_CONFIG = ("--config", "-config")
_SETTING = "--config."
_OPTIONS = "--config.dataset.options."
_RUN_SETTINGS = flags.DEFINE_multi_string(
  "run_setting", [], "NAME=VALUE: written by `parse` for a setting that is given without --config."
)
_PACKAGE = pathlib.Path(__file__).parent


def config_folder() -> pathlib.Path:
  """The folder of the configs that come with the package: installed, or beside it in a clone."""
  installed = _PACKAGE / "configs"
  return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
  """Names that `--config` takes, sorted."""
  return sorted(path.stem for path in config_folder().glob("[a-z]*.py"))


def config_file(value: str) -> str:
  """The file behind the value of `--config`, with its variant: "NAME:variant" or "FILE.py:variant".

  Raises:
    UserError: there is neither such a config nor such a file, or the path cannot be read.
  """
  name, colon, variant = value.partition(":")
  path = user_files.expanded(name, "--config")
  if path.suffix == ".py":
    if user_files.exists(path, "--config") and path.is_file():
      return f"{path}{colon}{variant}"
    nearby = sorted(str(other) for other in path.parent.glob("*.py") if other.stem != "__init__")
    listed = ", ".join(nearby) or f"the names {', '.join(config_names())}"
    raise UserError(f"--config={value}: no such file; there is {listed}")
  if name in config_names():
    return f"{config_folder() / name}.py{colon}{variant}"
  raise UserError(f"--config={value}: no such config; choose one of {', '.join(config_names())}")


def parse(arguments: Sequence[str]) -> list[str]:
  """absl's parser, with every mistake in flags and config files turned into one line.

  Returns:
    The arguments that are no flags, the program's name first.

  Raises:
    UserError: an unknown flag, setting, config or variant, or a value of the wrong type.
  """
  app.define_help_flags()
  arguments = _with_config_file(list(arguments))
  if not any(argument.partition("=")[0] in _CONFIG for argument in arguments):
    arguments = list(map(_run_setting, arguments))
  arguments, options = _without_options(arguments)
  arguments = list(map(with_keywords_quoted, arguments))
  sys.argv = arguments  # where config_flags looks for fields that are set
  with _mistakes_in_one_line(arguments):
    rest = FLAGS(arguments)
    config = FLAGS.config or ConfigDict()
    config.to_dict()  # a file that cannot be read is reported only here
    _set_options(config, options)
  return rest


@contextlib.contextmanager
def _mistakes_in_one_line(arguments: Sequence[str]) -> Iterator[None]:
  """Turns the errors of absl and config_flags into a `UserError`."""
  try:
    yield
  except flags.UnrecognizedFlagError as error:
    raise UserError(f"{error}{_hint(error.flagname)}") from error
  except (flags.Error, UserError) as error:
    raise UserError(str(error)) from error
  except (AttributeError, KeyError) as error:
    words = str(error.args[0]).replace("\\n", "; ").replace("\\", "").replace("'", "")
    raise UserError(f"--config: unknown name: {_renamed(arguments) or words}") from error
  except Exception as error:  # a config file is Python and can fail in any way
    last_line = str(error).strip().rsplit("\n", 1)[-1]
    raise UserError(f"--config: {type(error).__name__}: {last_line}") from error


def _run_setting(argument: str) -> str:
  """A setting given without `--config` as the flag that keeps it for `with_run_settings`."""
  if not argument.startswith(_SETTING):
    return argument
  setting = argument.removeprefix(_SETTING)
  if "=" not in setting:
    raise UserError(f"{argument}: give it a value, {argument}=VALUE")
  return f"--{_RUN_SETTINGS.name}={setting}"


def with_run_settings(config: ConfigDict) -> ConfigDict:
  """The config of a finished run with the settings that were given without `--config`.

  Args:
    config: of the run; changed in place.

  Raises:
    UserError: a setting decides what the run computed, is unknown or has a wrong value.
  """
  for setting in _RUN_SETTINGS.value:
    name = setting.partition("=")[0]
    if not config_lib.is_runtime(name):
      raise UserError(
        f"{_SETTING}{name}: without --config only settings of where and how a run runs can be"
        f" given: {', '.join(config_lib.RUNTIME_FIELDS)}"
      )
  arguments = [sys.argv[0], *(f"{_SETTING}{setting}" for setting in _RUN_SETTINGS.value)]
  values = flags.FlagValues()
  with _mistakes_in_one_line(arguments):
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    values(arguments)
  return config


def with_keywords_quoted(argument: str) -> str:
  """An argument as config_flags can read it.

  It parses names as Python, where `global` is a keyword:
  --config.loss.weights.global=0 becomes --config.loss.weights["global"]=0.
  """
  name, equals, value = argument.partition("=")
  if not name.startswith(_SETTING):
    return argument
  quoted = (f'["{part}"]' if keyword.iskeyword(part) else f".{part}" for part in name.split("."))
  return "".join(quoted)[1:] + equals + value


def _with_config_file(arguments: list[str]) -> list[str]:
  """The arguments with the value of `--config` replaced by its file."""
  for place, argument in enumerate(arguments):
    name, equals, value = argument.partition("=")
    if name in _CONFIG:
      if equals:
        arguments[place] = f"--config={config_file(value)}"
      elif place + 1 < len(arguments):
        arguments[place + 1] = config_file(arguments[place + 1])
  return arguments


def _without_options(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
  """Splits off the dataset's own options, which a config file need not list.

  Raises:
    UserError: an option at the end has no value.
  """
  options, others, left = {}, [], iter(arguments)
  for argument in left:
    if not argument.startswith(_OPTIONS):
      others.append(argument)
      continue
    name, equals, value = argument.removeprefix(_OPTIONS).partition("=")
    options[name] = value if equals else next(left, None)
    if options[name] is None:
      raise UserError(f"{argument}: give it a value, {argument}=VALUE")
  return others, options


def _set_options(config: ConfigDict, options: dict[str, str]) -> None:
  """Sets options of the dataset's builder, which checks their names and values."""
  for name, text in options.items():
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = text
    with config.unlocked():
      config.dataset.options[name] = value


def _hint(flag: str) -> str:
  """A suggestion for an unknown flag that is the name of a setting."""
  settings = [name for name in _leaves(config_lib.base()) if name.split(".")[-1] == flag]
  settings += [name for name in _leaves(config_lib.base()) if name == flag and "." in flag]
  return f"; did you mean --config.{settings[0]}?" if settings else ""


def _renamed(arguments: Sequence[str]) -> str:
  """The new name of a setting that was renamed or removed, among the arguments."""
  for argument in arguments:
    name = argument.partition("=")[0].removeprefix(_SETTING).replace('["global"]', ".global")
    if new := older_names.RENAMED_SETTINGS.get(name):
      return f"config.{name} is called config.{new} since release 0.2.0"
    if name in older_names.REMOVED_SETTINGS:
      return f"config.{name} was removed in release 0.2.0"
  return ""


def _leaves(config: ConfigDict, prefix: str = "") -> list[str]:
  names = []
  for name, value in config.items():
    names += (
      _leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
    )
  return names
