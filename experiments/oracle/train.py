"""Trains one ORACLE run, with the flags of `dgia_jax.main` and the name of the oracle:

  python -m experiments.oracle.train --oracle=relations --config=configs/synth_pedes.py \\
      --workdir=DIR

Oracles read true identities: they say what mining could gain, and are no method. `experiments.run
reference` makes these commands.
"""

import logging
import sys

from absl import flags

from dgia_jax import distributed, run_flags, sharding
from dgia_jax import main as main_lib
from dgia_jax.errors import UserError

ORACLES = ("relations", "captions")


def train(oracle_name, config, workdir, console):
  """Trains a run with an oracle plugged in.

  Args:
    oracle_name: one of `ORACLES`.
    config, workdir, console: as `dgia_jax.training.train.train`.

  Returns:
    What results.json holds.

  Raises:
    UserError: as `dgia_jax.training.train.train`.
  """
  from dgia_jax.training import setup
  from dgia_jax.training import train as train_lib
  from experiments.oracle import relations

  splits = setup.load_splits(config)
  pairs = splits["train"]
  if oracle_name == "relations":
    plugged = relations.true_relations(
      pairs, config.global_association.k, config.seed, sharding.create_mesh(**config.mesh)
    )
  else:
    words = setup.load_tokenizer(config, workdir, pairs.captions)
    plugged = relations.true_captions(pairs, words.encode(pairs.captions), config.seed)
  return train_lib.train(config, workdir, console, splits, **plugged)


def run():
  """Entry point."""
  flags.DEFINE_enum("oracle", None, ORACLES, "Which true knowledge the run is given.")
  with distributed.failing_together():
    run_flags.parse(sys.argv)
    found = main_lib.FLAGS
    for name in ("oracle", "config", "workdir"):
      if not getattr(found, name):
        raise UserError(f"--{name} is missing")
    logging.getLogger("absl").setLevel(logging.WARNING)
    from dgia_jax.reporting.console import Console

    train(found.oracle, found.config, found.workdir, Console())


if __name__ == "__main__":
  run()
