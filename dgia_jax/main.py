"""Trains or evaluates one run:

python -m dgia_jax.main --config synth_pedes --workdir runs/demo
"""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from dgia_jax import distributed, remote, run_flags, worker_processes
from dgia_jax.errors import UserError

# The flags that each mode needs; evaluate can read the config of the run in --workdir.
REQUIRED = {
  "train": ("config", "workdir"),
  "evaluate": ("workdir",),
  "compile": ("config", "topology"),
}

FLAGS = flags.FLAGS
_DEFINED = (
  config_flags.DEFINE_config_file(
    "config", None, "Config by name or file: NAME[:variant] or FILE.py[:variant].", lock_config=True
  ),
  flags.DEFINE_string("workdir", None, "Working directory; training resumes when it holds a run."),
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, one of several processes."),
  flags.DEFINE_integer("num_processes", None, "Number of processes."),
  flags.DEFINE_integer("process_id", None, "Number of this process, from 0."),
  flags.DEFINE_bool(
    "detect_processes", True, "Join the other processes of the surrounding TPU slice or SLURM step."
  ),
  flags.DEFINE_enum(
    "mode", "train", list(REQUIRED), "train; evaluate a run; compile for --topology."
  ),
  flags.DEFINE_string("topology", None, "Devices to compile for, such as v5e:16x16 or cpu:8."),
  flags.DEFINE_integer("num_pairs", None, "Training pairs to compile for; default: the dataset's."),
)


def main(arguments: Sequence[str], train: Callable[..., Any] | None = None) -> None:
  """Runs the chosen mode.

  Args:
    arguments: what the flags left over, after the program's name.
    train: replaces `training.train.train`, with the arguments config, workdir and console.

  Raises:
    UserError: for mistakes of the user.
  """
  if len(arguments) > 1:
    raise UserError(f"unexpected argument {arguments[1]!r}: settings are --config.name=value")
  for name in REQUIRED[FLAGS.mode]:
    if not getattr(FLAGS, name):
      raise UserError(f"--{name} is missing")
  logging.getLogger("absl").setLevel(logging.WARNING)
  # Imported here: the processes that decode images import this module again, and need none of it.
  from dgia_jax.dry_run import compile_report
  from dgia_jax.reporting.console import Console
  from dgia_jax.training import compilation_cache, evaluate
  from dgia_jax.training import train as train_lib

  if FLAGS.mode == "compile":  # one process, wherever it is started
    jax.config.update("jax_platforms", "cpu")  # the described devices are not attached
    compile_report.report(FLAGS.config, FLAGS.topology, FLAGS.num_pairs, Console())
    return
  distributed.start(
    FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.detect_processes
  )
  _check_backend()
  compilation_cache.enable()
  console = Console(active=jax.process_index() == 0)
  with remote.mirrored(
    FLAGS.workdir,
    "--workdir",
    writes=jax.process_index() == 0,
    claims=FLAGS.mode == "train",
    notify=lambda line: console.print(line, style="yellow"),
  ) as folder:
    workdir = str(folder)
    if FLAGS.mode == "train":
      (train or train_lib.train)(FLAGS.config, workdir, console)
    else:
      evaluate.evaluate(FLAGS.config or _config_of(workdir), workdir, console)


def _config_of(workdir: str) -> ConfigDict:
  """The config that a run was started with, and the settings given for this command."""
  from dgia_jax import config as config_lib
  from dgia_jax.training import workdir as workdir_lib

  return run_flags.with_run_settings(config_lib.from_stored(workdir_lib.read_config(workdir)))


def _check_backend() -> None:
  """Raises UserError when the platform that the user asked for is missing."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    asked = jax.config.jax_platforms or "the default platform"
    reason = " ".join(str(error).split())[:200] or "no such devices"
    raise UserError(
      f"JAX finds no device of JAX_PLATFORMS={asked} ({reason}); install the matching extra"
      " (pip install -e '.[gpu]' or '.[tpu]') or unset JAX_PLATFORMS"
    ) from error


def help_text() -> str:
  """The program's flags, and where its settings are."""
  return "\n".join(
    [
      __doc__ or "",
      "flags:",
      *(f"  --{flag.name}: {FLAGS[flag.name].help}" for flag in _DEFINED),
      "  --pretrained: With `dgia`, short for --config.pretrained: weights to begin with or score.",
      "",
      f"configs: {', '.join(run_flags.config_names())}; a config's file describes its variants.",
      "settings: --config.NAME=VALUE, after --config; docs/configuration.md lists them.",
      "  Without --config, evaluate takes those that say where and how a run runs, such as mesh.",
    ]
  )


def run(arguments: Sequence[str] | None = None) -> int:
  """Entry point: returns 0, or ends the process with one line and exit code 2."""
  if {"-h", "-help", "--help"} & set(sys.argv if arguments is None else arguments):
    print(help_text())
    return 0
  worker_processes.leave_if_work_is_repeated()
  with distributed.failing_together():
    main(run_flags.parse(sys.argv if arguments is None else arguments))
  return 0


if __name__ == "__main__":
  sys.exit(run())
