"""Small checkpoints, saved and restored on one device."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from dgia_jax.method import train_state
from dgia_jax.training import checkpoint
from tests.helpers import compiled_bank
from tests.helpers.meshes import mesh_of

RECORD = {"data_position": 3, "epoch": 1}


def initializer(width: int = 8) -> Callable[[], train_state.TrainState]:
  """Creates a state with one kernel, (width, 4 * width), and a bank of 20 pairs."""

  def params():
    key = jax.random.key(0)
    return {"mlp": {"up": {"kernel": jax.random.normal(key, (width, 4 * width))}}}

  return train_state.initializer(params, optax.adam(1e-3), num_pairs=20, feature_dim=8)


def state_on(mesh: jax.sharding.Mesh, step: int = 3) -> train_state.TrainState:
  """A state whose bank, optimizer state and parameters differ between steps."""
  state = train_state.create(mesh, initializer())
  index = np.arange(20, dtype=np.int32)
  features = np.random.default_rng(step).normal(size=(20, 8)).astype(np.float32)
  bank = compiled_bank.update(
    state.bank, index, index, features, -features, np.ones(20, np.float32), mesh=mesh
  )
  params, opt_state = jax.tree.map(lambda x: x + step, (state.params, state.opt_state))
  return state.replace(step=state.step + step, params=params, bank=bank, opt_state=opt_state)


def abstract_state(width: int = 8) -> train_state.TrainState:
  """Shapes and types of the state."""
  return jax.eval_shape(initializer(width))


def save(
  workdir: pathlib.Path, *steps: int, scores: Mapping[int, float] | None = None, **options: Any
) -> dict[int, train_state.TrainState]:
  """Saves a checkpoint per step, closes them and returns the states on the host by step."""
  states = {step: state_on(mesh_of(1, 1, 1), step) for step in steps}
  checkpoints = checkpoint.Checkpoints(workdir, **options)
  for step, state in states.items():
    record = RECORD | {"data_position": step}
    checkpoints.save(state, record)
    if scores and step in scores:
      checkpoints.add_score(step, record, scores[step])
    checkpoints.wait()
  checkpoints.close()
  return {step: jax.device_get(state) for step, state in states.items()}


def restore_newest(
  workdir: pathlib.Path, **options: Any
) -> tuple[int, train_state.TrainState, dict, list[str]]:
  """(step, state on the host, record, messages)."""
  messages = []
  checkpoints = checkpoint.Checkpoints(workdir, notify=messages.append, **options)
  step, state, record = checkpoints.restore_newest(mesh_of(1, 1, 1), abstract_state())
  checkpoints.close()
  return step, jax.device_get(state), record, messages


def assert_equal(tree: Any, expected: Any) -> None:
  """Asserts that two trees hold equal arrays."""
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def data_file(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """The largest file with arrays of a checkpoint."""
  files = (workdir / checkpoint.FOLDER / str(step)).glob("state/d/*")
  return max(files, key=lambda file: file.stat().st_size)
