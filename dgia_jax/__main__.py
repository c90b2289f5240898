"""The command `dgia`, also `python -m dgia_jax`:

  dgia train     --config NAME[:variant] --workdir DIR [--config.key=value ...]
  dgia evaluate  --workdir DIR [--pretrained X --config NAME]
  dgia compile   --config NAME[:variant] --topology v5e:16x16
  dgia data      check | make | prepare ...
  dgia search    index | query | serve | export ...
  dgia convert   --run DIR --out FOLDER

`dgia COMMAND --help` describes each of them.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from dgia_jax import __version__, cli
from dgia_jax.errors import UserError

PROGRAMS = {
  "data": "dgia_jax.data.__main__",
  "search": "dgia_jax.search.__main__",
  "convert": "dgia_jax.convert",
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  return cli.run(_dispatch, arguments)


def _dispatch(arguments: list[str]) -> int:
  command = arguments[0] if arguments else "--help"
  if command in ("-h", "--help", "help"):
    print(__doc__)
    return 0
  if command == "--version":
    print(f"dgia_jax {__version__}")
    return 0
  if command in PROGRAMS:
    return importlib.import_module(PROGRAMS[command]).main(arguments[1:])
  # imported here, because it imports JAX, which `data`, `search` and `convert` load later
  from dgia_jax import main as run_main

  modes = tuple(run_main.REQUIRED)
  if command in modes:
    flags = _spell_out(arguments[1:])
    return run_main.run([f"dgia {command}", f"--mode={command}", *flags])
  raise UserError(f"no command {command!r}: choose one of {', '.join((*modes, *PROGRAMS))}")


def _spell_out(flags: Sequence[str]) -> list[str]:
  """Writes `--pretrained X` as the setting it is short for, which must come after `--config`."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
  parser.add_argument("--pretrained")
  try:
    short, others = parser.parse_known_args(flags)
  except argparse.ArgumentError as error:
    raise UserError(f"{error}: give a checkpoint, a folder or a name on the hub") from error
  return (
    others if short.pretrained is None else [*others, f"--config.pretrained={short.pretrained}"]
  )


if __name__ == "__main__":
  sys.exit(main())
