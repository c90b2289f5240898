"""Trains or evaluates one run:

python -m dgia_jax.main --config configs/synth_pedes.py --workdir runs/demo
"""

import logging
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from dgia_jax.errors import UserError

MODES = ("train", "evaluate")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Experiment: FILE.py[:variant].", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run; training resumes when it holds one.")
flags.DEFINE_enum("mode", "train", MODES, "train, or evaluate a run that has checkpoints.")


def main(arguments):
  """Runs the chosen mode; mistakes of the user end in one line and exit code 2."""
  if len(arguments) > 1:
    raise UserError(f"unexpected argument {arguments[1]!r}: settings are --config.name=value")
  for name in ("config", "workdir"):
    if getattr(FLAGS, name) is None:
      raise UserError(f"--{name} is missing")
  logging.getLogger("absl").setLevel(logging.WARNING)
  # Imported here: the processes that decode images import this module again, and need none of it.
  from dgia_jax import evaluate, train
  from dgia_jax.console import Console

  modes = {"train": train.train, "evaluate": evaluate.evaluate}
  modes[FLAGS.mode](FLAGS.config, FLAGS.workdir, Console(active=jax.process_index() == 0))


def parse(arguments):
  """absl's parser, with the mistakes that it reports by traceback turned into one line."""
  try:
    return app.parse_flags_with_usage(arguments)
  except (OSError, ImportError, AttributeError, KeyError, ValueError, TypeError) as error:
    raise UserError(f"--config: {error}") from error


def run():
  """Entry point."""
  try:
    main(parse(sys.argv))
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  run()
