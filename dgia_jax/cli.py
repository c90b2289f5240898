"""What every program of the package shares: mistakes of the user end in one line on stderr.

A program's `main(argv)` hands its work to `run`, which turns a `UserError` into `error: ...` and
exit code 2.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable
from typing import NoReturn

from dgia_jax import full_disk
from dgia_jax.errors import UserError, printable


def run(function: Callable[..., int | None], *args: object, interrupted: str = "stopped") -> int:
  """Calls a program's function and returns the exit code of the process.

  A `UserError` is printed as one line and gives 2, as does a full disk. Ctrl-C prints `interrupted`
  and gives 130, a reader that closes the output early (`| head`) gives 141, and None counts as 0.
  Any other exception is a bug and passes with its traceback. What the output's encoding lacks is
  escaped.
  """
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")
  try:
    exit_code = function(*args) or 0
    sys.stdout.flush()
    return exit_code
  except UserError as error:
    print(error_line(error), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(interrupted, file=sys.stderr)
    return 130
  except BrokenPipeError:
    _drop_output()
    return 141
  except OSError as error:
    if not full_disk.is_cause(error):
      raise
    place = error.filename or "the output"
    full = UserError(f"{place} cannot be written ({error.strerror}); free some space")
    print(error_line(full), file=sys.stderr)
    _drop_output()
    return 2


def _drop_output() -> None:
  """Drops what stdout does not take; Python would complain again when it exits."""
  try:
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_to_stderr(line: str) -> None:
  """Prints a line that the user should see at once."""
  print(line, file=sys.stderr, flush=True)


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
