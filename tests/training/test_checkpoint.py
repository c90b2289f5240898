import jax
import numpy as np
import optax
import pytest

from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.method import train_state
from dgia_jax.training import checkpoint
from tests.helpers import compiled_bank

RECORD = {"data_position": 3, "epoch": 1}


def mesh_of(*shape):
  return sharding.create_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])


def initializer(width=8):
  def params():
    key = jax.random.key(0)
    return {"mlp": {"up": {"kernel": jax.random.normal(key, (width, 4 * width))}}}

  return train_state.initializer(params, optax.adam(1e-3), num_pairs=20, feature_dim=8)


def state_on(mesh, step=3):
  """A state with something in the bank and in the optimiser."""
  state = train_state.create(mesh, initializer())
  index = np.arange(20, dtype=np.int32)
  features = np.random.default_rng(step).normal(size=(20, 8)).astype(np.float32)
  bank = compiled_bank.update(
    state.bank, index, index, features, -features, np.ones(20, np.float32), mesh=mesh
  )
  opt_state = jax.tree.map(lambda x: x + 1, state.opt_state)
  return state.replace(step=state.step + step, bank=bank, opt_state=opt_state)


@pytest.mark.parametrize("there, back", [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 4, 1))], ids=str)
def test_any_mesh_restores_any_meshs_checkpoint(tmp_path, there, back):
  state = state_on(mesh_of(*there))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state, RECORD, score=1.0)
  checkpoints.wait()
  mesh = mesh_of(*back)
  restored, record = checkpoints.restore(3, mesh, jax.eval_shape(initializer()))
  checkpoints.close()
  assert record == RECORD
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
  assert len(restored.bank.image.sharding.device_set) == int(np.prod(back))
  assert checkpoint.digest(restored, 20) == checkpoint.digest(state, 20)


def test_the_newest_and_the_best_are_kept(tmp_path):
  mesh = mesh_of(1, 1, 1)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  for step, score in ((1, 10.0), (2, 50.0), (3, None), (4, 20.0), (5, None), (6, 30.0)):
    checkpoints.save(state_on(mesh, step), RECORD, score)
  checkpoints.wait()
  assert checkpoint.steps_saved(tmp_path) == [2, 5, 6]
  assert (checkpoints.latest(), checkpoints.best()) == (6, 2)
  checkpoints.close()


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
  mesh = mesh_of(1, 1, 1)
  state = state_on(mesh)
  expected = jax.tree.map(np.array, jax.device_get(state))
  spoil = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 7, state), donate_argnums=0)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state, RECORD)
  for _ in range(5):
    state = spoil(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore(3, mesh, jax.eval_shape(initializer()))
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), expected)


def test_leftovers_of_a_killed_save_are_no_checkpoint(tmp_path):
  mesh = mesh_of(1, 1, 1)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state_on(mesh), RECORD)
  checkpoints.wait()
  checkpoints.close()
  leftover = tmp_path / checkpoint.FOLDER / "9.orbax-checkpoint-tmp-1"
  leftover.mkdir()
  (leftover / "state").write_text("half")
  assert checkpoint.steps_saved(tmp_path) == [3]
  again = checkpoint.Checkpoints(tmp_path)
  assert again.latest() == 3
  again.close()


def test_a_checkpoint_of_another_model_is_named(tmp_path):
  mesh = mesh_of(1, 1, 1)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state_on(mesh), RECORD)
  checkpoints.wait()
  with pytest.raises(UserError, match=r"checkpoints/3: cannot be restored"):
    checkpoints.restore(3, mesh, jax.eval_shape(initializer(width=16)))
  checkpoints.close()


def test_the_digest_sees_every_bit_but_not_the_padding():
  state = state_on(mesh_of(1, 1, 1))
  digest = checkpoint.digest(state, 20)
  touched = state.replace(bank=state.bank.replace(text=state.bank.text.at[19, 0].add(1e-6)))
  padding = state.replace(bank=state.bank.replace(text=state.bank.text.at[20, 0].add(1.0)))
  assert checkpoint.digest(touched, 20) != digest
  assert checkpoint.digest(padding, 20) == digest
