"""A finished run opened for measuring: its parts, and the parameters of one checkpoint."""

import jax
import numpy as np

from dgia_jax import sharding
from dgia_jax.training import checkpoint, setup


def open_run(config, folder, splits, choice):
  """Opens a run; nothing in its folder changes.

  Args:
    config: the run's resolved config.
    folder: its work directory.
    splits: {"test": PairTable}: what to measure on, of this dataset or another.
    choice: "best" or "last" checkpoint.

  Returns:
    The TrainingSetup, the parameters laid out on its mesh, and the checkpoint's step.

  Raises:
    UserError: the folder holds no complete checkpoint, or the config does not fit.
  """
  # Nothing is trained: the training split gives only sizes, so the test pairs may stand for it.
  parts = setup.create(config, folder, {"train": splits["test"]} | splits)
  step, params = checkpoint.restore_params(folder, choice)
  return parts, jax.device_put(params, sharding.parameters(parts.mesh, params)), step


def spread(total, count):
  """`count` places spread evenly over `total`, ascending, fewer when there are not so many."""
  return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
