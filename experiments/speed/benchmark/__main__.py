"""Times training, association, ranking and input, compared with plain PyTorch.

  python -m experiments.speed.benchmark --config configs/cuhk_pedes.py --num_pairs 68108 --out PATH

Writes PATH.json and PATH.md after every part. Without PyTorch only our own code is measured. For
the command on a GPU, see experiments/results/README.md.
"""

import sys

from absl import flags
from ml_collections import config_flags

from dgia_jax.errors import UserError

PARTS = ("step", "shares", "association", "ranking", "input")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
  "config", None, "Config by name or file, with [:variant].", lock_config=True
)
flags.DEFINE_multi_enum("part", list(PARTS), PARTS, "What to measure; may be repeated.")
flags.DEFINE_string("out", None, "Write PATH.json and PATH.md.")
flags.DEFINE_integer("num_pairs", 68_108, "Training pairs, rows of the banks.", lower_bound=8)
flags.DEFINE_integer("association_batch", 64, "Batch size of the association alone.", lower_bound=2)
flags.DEFINE_integer("repeats", 5, "Measurements per implementation.", lower_bound=1)
flags.DEFINE_integer("calls", 0, "Calls per measurement; 0: by device.", lower_bound=0)
flags.DEFINE_integer("threads", 0, "Cores per implementation; 0: all.", lower_bound=0)
flags.DEFINE_list(
  "implementations", None, "What is compared; default: all, on a CPU without 'torch compiled'."
)
flags.DEFINE_list("batch_sizes", [], "More batch sizes whose step is measured.")
flags.DEFINE_float("seconds", 0, "Prepare nothing more after this time; 0: no limit.")
flags.DEFINE_list("ranking_sizes", None, "QUERIESxGALLERY, several; default: all.")
flags.DEFINE_list("workers", ["0", "2"], "Decoding processes of the input part.")
flags.DEFINE_float("input_seconds", 10, "Seconds per measurement of the input.", lower_bound=0.1)


def run() -> int:
  """Entry point; returns the exit code."""
  # Imported here: worker processes import this module again, and need none of it.
  from dgia_jax import cli

  return cli.run(_run)


def _run() -> None:
  from dgia_jax import run_flags

  rest = run_flags.parse(sys.argv)
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}")
  if not FLAGS.config:
    raise UserError("--config is missing")
  from experiments.speed.benchmark import suite

  suite.main(FLAGS)


if __name__ == "__main__":
  sys.exit(run())
