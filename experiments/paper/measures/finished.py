"""Opens a finished run for measuring: its setup and the parameters of one checkpoint."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dgia_jax import sharding
from dgia_jax.data.pairs import PairTable
from dgia_jax.training import run_weights, setup

Splits = Mapping[str, PairTable]  # split name -> pairs


class OpenRun(NamedTuple):
  """A run's setup, the parameters on its mesh, and the step of their checkpoint."""

  setup: setup.TrainingSetup
  params: dict[str, Any]
  step: int


def open_run(config: ConfigDict, folder: pathlib.Path, splits: Splits, choice: str) -> OpenRun:
  """Opens a run without changing its folder.

  Args:
    config: the run's resolved config.
    folder: the run's working directory.
    splits: "test" holds the pairs to measure on, of this dataset or another.
    choice: "best" or "last" checkpoint.

  Raises:
    UserError: the folder holds no complete checkpoint, or the config does not match it.
  """
  # Nothing is trained: only the sizes of the training split matter, so the test pairs replace it.
  opened = setup.create_for_evaluation(config, folder, {"train": splits["test"]} | splits)
  loaded = run_weights.load(folder, choice)
  params = jax.device_put(loaded.params, sharding.parameters(opened.mesh, loaded.params))
  return OpenRun(opened, params, loaded.step)


def spread(total: int, count: int) -> np.ndarray:
  """`count` numbers spread evenly from 0 to `total` - 1, ascending; at most `total` of them."""
  return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
