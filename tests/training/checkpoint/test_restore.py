"""Checkpoints are restored on any mesh, and the newest and the best are kept."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore

from dgia_jax import distributed
from dgia_jax.errors import UserError
from dgia_jax.method import train_state
from dgia_jax.training import checkpoint
from tests.helpers.checkpoints import (
  RECORD,
  abstract_state,
  assert_equal,
  restore_newest,
  save,
  state_on,
)
from tests.helpers.meshes import mesh_of


@pytest.mark.parametrize(
  "saved_on, restored_on", [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 4, 1))], ids=str
)
def test_any_mesh_restores_the_checkpoint_of_any_mesh(tmp_path, saved_on, restored_on):
  state = state_on(mesh_of(*saved_on))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state, RECORD)
  checkpoints.wait()
  restored, record = checkpoints.restore(3, mesh_of(*restored_on), abstract_state())
  checkpoints.close()
  assert record == RECORD
  assert_equal(jax.device_get(restored), jax.device_get(state))
  assert len(restored.bank.image.sharding.device_set) == int(np.prod(restored_on))
  assert checkpoint.digest(restored, 20) == checkpoint.digest(state, 20)


def test_a_checkpoint_that_a_network_disk_shows_late_is_waited_for(workdir, two_steps, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(distributed, "VISIBLE_SECONDS", 0.3)
  folder = workdir / checkpoint.FOLDER
  (folder / "4").rename(folder / "hidden")
  restore = lambda: checkpoint.Checkpoints(workdir).restore(4, mesh_of(1, 1, 1), abstract_state())
  with pytest.raises(UserError, match="checkpoints/4: process 1 does not see the files"):
    restore()
  monkeypatch.setattr(distributed, "VISIBLE_SECONDS", 60)
  timer = threading.Timer(0.3, (folder / "hidden").rename, [folder / "4"])
  timer.start()
  state, _ = restore()
  assert_equal(jax.device_get(state), two_steps[1][4])


def test_a_process_reads_only_what_its_devices_hold(workdir, monkeypatch):
  read_bytes, read = [], tensorstore.TensorStore.read

  def counted(store, *arguments, **options):
    read_bytes.append(int(np.prod(store.shape)) * store.dtype.numpy_dtype.itemsize)
    return read(store, *arguments, **options)

  monkeypatch.setattr(tensorstore.TensorStore, "read", counted)
  mesh = mesh_of(2, 2, 2)
  state, _ = checkpoint.Checkpoints(workdir).restore(4, mesh, abstract_state())
  assert max(read_bytes) == state.bank.image.nbytes // 8
  assert sum(read_bytes) == sum(array.nbytes for array in jax.tree.leaves(state))


def test_the_newest_and_the_best_are_kept(tmp_path):
  save(tmp_path, *range(1, 7), scores={1: 10.0, 2: 50.0, 4: 20.0, 6: 30.0}, keep=2)
  assert checkpoint.steps_saved(tmp_path) == [2, 5, 6]
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert (checkpoints.latest(), checkpoints.best()) == (6, 2)


def test_a_restarted_run_still_keeps_the_best(tmp_path):
  save(tmp_path, 1, 2, scores={1: 50.0, 2: 10.0}, keep=1)
  save(tmp_path, 3, 4, scores={4: 50.0}, keep=1)  # of equal scores, the later one is the best
  assert checkpoint.steps_saved(tmp_path) == [4]
  assert checkpoint.Checkpoints(tmp_path).best() == 4


def test_a_score_is_added_to_a_saved_checkpoint(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  for step, score in ((1, 20.0), (2, 50.0), (3, 10.0)):
    checkpoints.save(state_on(mesh_of(1, 1, 1), step), RECORD)
    checkpoints.add_score(step, RECORD | {"epoch": step}, score)
  assert checkpoint.steps_saved(tmp_path) == [2, 3]  # 1 went when 2 turned out to be better
  checkpoints.close()
  again = checkpoint.Checkpoints(tmp_path, keep=1)
  assert again.best() == 2
  state, record = again.restore(2, mesh_of(1, 1, 1), abstract_state())
  assert record == RECORD | {"epoch": 2} and int(state.step) == 2
  again.add_score(3, RECORD, 90.0)  # of a process that has saved nothing
  assert checkpoint.steps_saved(tmp_path) == [3] and again.best() == 3
  again.close()


def test_a_checkpoint_of_another_model_is_refused_and_stays(two_steps):
  workdir, _ = two_steps
  checkpoints = checkpoint.Checkpoints(workdir)
  message = r"checkpoints/4: cannot be restored .* params/mlp/up/kernel: float32 \(8, 32\) in the"
  with pytest.raises(UserError, match="checkpoints/4: cannot be restored"):
    checkpoints.restore_newest(mesh_of(1, 1, 1), abstract_state(width=16))
  shapes = abstract_state()
  other = shapes.replace(params=abstract_state(width=16).params)
  with pytest.raises(UserError, match=message):
    checkpoints.restore(4, mesh_of(1, 1, 1), other)
  assert checkpoint.steps_saved(workdir) == [3, 4]


def test_checkpoints_of_earlier_releases_are_restored(tmp_path):
  """They hold no checksums, and the score is an item of its own."""
  states = {step: state_on(mesh_of(1, 1, 1), step) for step in (1, 2)}
  options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["score"])
  with ocp.CheckpointManager(
    tmp_path / checkpoint.FOLDER, item_names=("state", "record"), options=options
  ) as manager:
    for step, state in states.items():
      items = {"state": ocp.args.StandardSave(state), "record": ocp.args.JsonSave(RECORD)}
      manager.save(step, args=ocp.args.Composite(**items), metrics={"score": 10.0 - step})
  step, state, record, messages = restore_newest(tmp_path)
  assert (step, record) == (2, RECORD)
  assert_equal(state, jax.device_get(states[2]))
  assert len(messages) == 1 and "no checksums" in messages[0]
  assert checkpoint.restore_params(tmp_path, "best")[0] == 1


def test_the_last_block_of_a_checkpoint_that_stacked_it_is_found(tmp_path):
  """It was the last layer of the stack, in the parameters and in the optimizer's state."""

  def initializer(stacks_last):
    def params():
      kernel = jnp.arange(24.0).reshape(3, 2, 4)
      up = lambda kernel: {"mlp": {"up": {"kernel": kernel}}}
      apart = {"blocks": up(kernel[:-1]), "last_block": up(kernel[-1])}
      return {"text": {"blocks": up(kernel)} if stacks_last else apart}

    return train_state.initializer(params, optax.adam(1e-3), num_pairs=20, feature_dim=8)

  mesh = mesh_of(1, 1, 1)
  with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(train_state.create(mesh, initializer(True)), RECORD)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  _, state, _ = checkpoints.restore_newest(mesh, jax.eval_shape(initializer(False)))
  assert_equal(jax.device_get(state), jax.device_get(train_state.create(mesh, initializer(False))))
  assert_equal(checkpoint.restore_params(tmp_path)[1], jax.device_get(state.params))
