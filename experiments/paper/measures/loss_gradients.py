"""Sizes of the four losses and of their gradients, at the start and at the end of a training.

At the start the run's initial weights fill the memory bank, as the first epoch would with a
learning rate of 0, and all losses have started.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.method import train_state
from dgia_jax.training import checkpoint, inputs, train
from dgia_jax.training import setup as setup_lib
from experiments.paper.measures import finished

BATCHES = 8
FIRST = "itc"  # the loss that the cosines compare with

Batch = Mapping[str, jax.Array]


def measure(
  config: ConfigDict,
  folder: pathlib.Path,
  splits: finished.Splits,
  choice: str,
  num_batches: int = BATCHES,
) -> dict[str, Any]:
  """Values and gradient norms of the losses, means over the first batches of a training.

  Args:
    config, folder: as `finished.open_run`.
    splits: with "train", the pairs of the training; else the config's are loaded.
    choice: not used: only the newest checkpoint holds a memory bank.
    num_batches: batches to average over.

  Returns:
    {"start" or "end": {loss: {"value", "gradient_norm", "cosine"}}}; losses with a weight of 0 are
    missing. The weight scales neither number. "cosine" compares the gradient with that of the
    contrastive loss.

  Raises:
    UserError: the folder holds no complete checkpoint.
  """
  del choice
  splits = splits if "train" in splits else inputs.load_splits(config)
  setup = setup_lib.create(config, folder, splits)
  names = [name for name, weight in config.loss.weights.items() if weight]
  batches = list(itertools.islice(_first_epoch(setup), num_batches))
  started = max(config.local_association.start_epoch, config.global_association.start_epoch)
  steps = {name: gradient_step(setup, {name: 1}) for name in names}
  measured = {}
  for moment, state in (("start", _start(setup)), ("end", _end(setup, folder))):
    state = without_optimizer(setup, state)
    by_batch = []
    for number, batch in enumerate(batches):
      state = state.replace(step=jnp.int32(started * setup.steps_per_epoch + number))
      by_batch.append({name: step(state, batch) for name, step in steps.items()})
    measured[moment] = {name: _means(by_batch, name) for name in names}
  return measured


def _first_epoch(setup: setup_lib.TrainingSetup) -> Iterator[Batch]:
  """The batches of the first epoch."""
  tokens_NxL = setup.tokenizer.encode(setup.train_pairs.captions)
  return itertools.islice(train.global_batches(setup, tokens_NxL, 0), setup.steps_per_epoch)


def _start(setup: setup_lib.TrainingSetup) -> train_state.TrainState:
  """The initial weights, with a memory bank that holds their features of all training pairs."""
  state = setup_lib.initial_state(setup)
  params = state.params
  step = jax.jit(setup_lib.create_step(setup))
  for batch in _first_epoch(setup):
    state, _ = step(state, batch)
    state = state.replace(params=params)
  return state


def _end(setup: setup_lib.TrainingSetup, folder: pathlib.Path) -> train_state.TrainState:
  """The state after the last step.

  Raises:
    UserError: the folder holds no complete checkpoint.
  """
  checkpoints = checkpoint.Checkpoints(folder, read_only=True)
  try:
    restored = checkpoints.restore_newest(setup.mesh, setup.abstract_state)
  finally:
    checkpoints.close()
  if restored is None:
    raise UserError(f"{folder}: holds no complete checkpoint")
  return restored[1]


def gradient_step(setup: setup_lib.TrainingSetup, weights: Mapping[str, float]) -> Callable:
  """A compiled function (state, batch) -> (metrics of the step, its flat gradient).

  Args:
    setup: of the run.
    weights: of the losses, in place of `config.loss.weights`; missing ones are 0.
  """
  config = ConfigDict(setup.config.to_dict())
  config.loss.weights = {name: float(weights.get(name, 0)) for name in config.loss.weights}
  changed = dataclasses.replace(setup, config=config, optimizer=optax.identity())
  step = setup_lib.create_step(changed)

  def gradient_of(state, batch):
    # An update by the gradient itself turns the difference of the parameters into the gradient.
    following, output = step(state, batch)
    before, after = map(setup.select_trained, (state.params, following.params))
    flat, _ = ravel_pytree(jax.tree.map(jnp.subtract, after, before))
    return output.metrics, flat

  return jax.jit(gradient_of, out_shardings=sharding.replicated(setup.mesh))


def without_optimizer(
  setup: setup_lib.TrainingSetup, state: train_state.TrainState
) -> train_state.TrainState:
  """The state as `gradient_step` takes it."""
  return state.replace(opt_state=optax.identity().init(setup.select_trained(state.params)))


def _means(by_batch: Sequence[Mapping[str, tuple]], name: str) -> dict[str, float]:
  """Means over batches of a loss's value, its gradient's norm and its cosine with `FIRST`'s."""
  numbers = [
    {
      "value": losses[name][0][f"loss_{name}"],
      "gradient_norm": jnp.linalg.norm(losses[name][1]),
      "cosine": optax.losses.cosine_similarity(losses[name][1], losses[FIRST][1]),
    }
    for losses in by_batch
  ]
  return {key: float(np.mean([of_batch[key] for of_batch in numbers])) for key in numbers[0]}
