"""Trains or evaluates one run:

python -m dgia_jax.main --config configs/synth_pedes.py --workdir runs/demo
"""

import logging
import sys

import jax
from absl import flags
from ml_collections import config_flags

from dgia_jax import cli, distributed
from dgia_jax.errors import UserError

MODES = ("train", "evaluate", "compile")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Experiment: FILE.py[:variant].", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run; training resumes when it holds one.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, one of several processes.")
flags.DEFINE_integer("num_processes", None, "How many processes there are.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
flags.DEFINE_bool("detect_processes", True, "Join the Cloud TPU slice or SLURM step this is in.")
flags.DEFINE_enum("mode", "train", MODES, "train; evaluate a run; compile for --topology.")
flags.DEFINE_string("topology", None, "Chips to compile for, such as v5e:16x16 or cpu:8.")
flags.DEFINE_integer("num_pairs", None, "Training pairs to compile for; default: the dataset's.")


def main(arguments):
  """Runs the chosen mode; mistakes of the user end in one line and exit code 2."""
  if len(arguments) > 1:
    raise UserError(f"unexpected argument {arguments[1]!r}: settings are --config.name=value")
  for name in ("config", "topology" if FLAGS.mode == "compile" else "workdir"):
    if not getattr(FLAGS, name):
      raise UserError(f"--{name} is missing")
  logging.getLogger("absl").setLevel(logging.WARNING)
  # Imported here: the processes that decode images import this module again, and need none of it.
  from dgia_jax.dry_run import compile_report
  from dgia_jax.reporting.console import Console
  from dgia_jax.training import compilation_cache, evaluate, train

  if FLAGS.mode == "compile":  # one process, whatever slice it is started on
    jax.config.update("jax_platforms", "cpu")  # the chips of the topology are not here
    compile_report.report(FLAGS.config, FLAGS.topology, FLAGS.num_pairs, Console())
    return
  compilation_cache.enable()
  distributed.start(
    FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.detect_processes
  )
  modes = {"train": train.train, "evaluate": evaluate.evaluate}
  modes[FLAGS.mode](FLAGS.config, FLAGS.workdir, Console(active=jax.process_index() == 0))


def run():
  """Entry point."""
  with distributed.failing_together():
    main(cli.parse(sys.argv))


if __name__ == "__main__":
  run()
