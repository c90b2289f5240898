"""A workload small enough for a test: the tiny run's model, 64 pairs."""

from experiments.speed.benchmark.workload import Workload
from tests.helpers import tiny_run


def workload(**fields):
  """A Workload of batch 8 on all devices; `fields` as in `tiny_run.config`."""
  config = tiny_run.config(mesh__data=-1, **fields)
  return Workload(config.to_dict(), num_pairs=64, association_batch=16)
