"""What every program of the package shares: mistakes of the user end in one line on stderr.

A program's `main(argv)` hands its work to `run`, which turns a `UserError` into `error: ...` and
exit code 2. Programs that take `--config` read their flags with `parse`.
"""

import argparse
import keyword
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict

from dgia_jax.errors import UserError, printable

FLAGS = flags.FLAGS


def run(function: Callable[..., int | None], *args: object, interrupted: str = "stopped") -> int:
  """Calls a program's function and returns the exit code of the process.

  A `UserError` is printed as one line and gives 2, Ctrl-C prints `interrupted` and gives 130, and
  None counts as 0. Any other exception is a bug and passes with its traceback.
  """
  try:
    return function(*args) or 0
  except UserError as error:
    print(error_line(error), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(interrupted, file=sys.stderr)
    return 130


def error_line(error: UserError) -> str:
  """`error: ...` on one line; control characters, from file names say, are escaped."""
  text = " ".join(str(error).split())
  return f"error: {printable(text)}"


def program(command: str) -> str:
  """How the user starts a command: "dgia data" or "python -m dgia_jax.data"."""
  prefix = "dgia " if pathlib.Path(sys.argv[0]).name == "dgia" else "python -m dgia_jax."
  return prefix + command


class ArgumentParser(argparse.ArgumentParser):
  """argparse's parser, with mistakes raised as `UserError`; parse inside `run`."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; see {self.prog} --help")


def parse(arguments: Sequence[str]) -> list[str]:
  """absl's parser, with every mistake in flags and config files turned into one line."""
  app.define_help_flags()
  arguments = list(map(with_keywords_quoted, arguments))
  sys.argv = arguments  # where config_flags looks for fields that are set
  try:
    rest = FLAGS(arguments)
    (FLAGS.config or ConfigDict()).to_dict()  # says only now that a file could not be read
    return rest
  except (flags.Error, UserError) as error:
    raise UserError(str(error)) from error
  except (AttributeError, KeyError) as error:
    words = str(error.args[0]).replace("\\n", "; ").replace("\\", "").replace("'", "")
    raise UserError(f"--config: unknown name: {words}") from error
  except Exception as error:  # a config file is Python and can fail in any way
    last_line = str(error).strip().rsplit("\n", 1)[-1]
    raise UserError(f"--config: {type(error).__name__}: {last_line}") from error


def with_keywords_quoted(argument: str) -> str:
  """An argument as config_flags can read it.

  It parses names as Python, where `global` is a word of the language:
  --config.loss.weights.global=0 becomes --config.loss.weights["global"]=0.
  """
  name, equals, value = argument.partition("=")
  if not name.startswith("--config."):
    return argument
  quoted = (f'["{part}"]' if keyword.iskeyword(part) else f".{part}" for part in name.split("."))
  return "".join(quoted)[1:] + equals + value
