"""Trains a run with an ORACLE; takes the flags of `dgia_jax.main` and the name of the oracle:

  python -m experiments.oracle.train --oracle=relations --config=configs/synth_pedes.py \\
      --workdir=DIR

Oracles use true identities: they are upper bounds, not methods. A mark in the working directory and
in results.json says so. `experiments.run reference` starts these commands.
"""

import functools
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from dgia_jax import distributed, run_flags, sharding
from dgia_jax import main as main_lib
from dgia_jax.errors import UserError
from dgia_jax.reporting.console import Console

ORACLES = ("relations", "captions")


def train(
  oracle: str, config: ConfigDict, workdir: pathlib.Path | str, console: Console
) -> dict[str, Any] | None:
  """Like `dgia_jax.training.train.train`, with one of `ORACLES`."""
  from dgia_jax.training import inputs
  from dgia_jax.training import train as train_lib
  from experiments.oracle import relations

  splits = inputs.load_splits(config)
  pairs, mark = splits["train"], f"oracle {oracle}"
  if oracle == "relations":
    mesh = sharding.create_mesh(**config.mesh)
    mining = relations.true_relations(pairs, config.global_association.k, config.seed, mesh)
    return train_lib.train(config, workdir, console, splits, identity_labels=mark, **mining)
  tokenizer = inputs.load_tokenizer(config, workdir, pairs.captions)
  captions = relations.true_captions(pairs, tokenizer.encode(pairs.captions), config.seed)
  return train_lib.train(config, workdir, console, splits, captions, identity_labels=mark)


def run() -> None:
  """Entry point: `dgia_jax.main` with the oracle's training."""
  flags.DEFINE_enum("oracle", None, ORACLES, "relations: true relations; captions: swapped.")
  with distributed.failing_together():
    arguments = run_flags.parse(sys.argv)
    if not main_lib.FLAGS.oracle:
      raise UserError("--oracle is missing")
    main_lib.main(arguments, functools.partial(train, main_lib.FLAGS.oracle))


if __name__ == "__main__":
  run()
