"""A problem small enough for a test: the tiny run's model, 64 pairs."""

from experiments.speed.benchmark.problem import Problem
from tests.helpers import tiny_run


def problem(**fields):
  """A Problem of batch 8 on all devices; `fields` as in `tiny_run.config`."""
  config = tiny_run.config(mesh__data=-1, **fields)
  return Problem(config.to_dict(), num_pairs=64, association_batch=16)
