"""Trains or evaluates one run:

python -m dgia_jax.main --config configs/synth_pedes.py --workdir runs/demo
"""

import keyword
import logging
import sys

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from dgia_jax import processes
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
  from dgia_jax import compile_report, evaluate, train
  from dgia_jax.console import Console

  if FLAGS.mode == "compile":  # one process, whatever slice it is started on
    jax.config.update("jax_platforms", "cpu")  # the chips of the topology are not here
    compile_report.report(FLAGS.config, FLAGS.topology, FLAGS.num_pairs, Console())
    return
  processes.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.detect_processes)
  modes = {"train": train.train, "evaluate": evaluate.evaluate}
  modes[FLAGS.mode](FLAGS.config, FLAGS.workdir, Console(active=jax.process_index() == 0))


def parse(arguments):
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


def with_keywords_quoted(argument):
  """An argument as config_flags can read it.

  It parses names as Python, where `global` is a word of the language:
  --config.loss.weights.global=0 becomes --config.loss.weights["global"]=0.
  """
  name, equals, value = argument.partition("=")
  if not name.startswith("--config."):
    return argument
  quoted = (f'["{part}"]' if keyword.iskeyword(part) else f".{part}" for part in name.split("."))
  return "".join(quoted)[1:] + equals + value


def run():
  """Entry point."""
  with processes.failing_together():
    main(parse(sys.argv))


if __name__ == "__main__":
  run()
