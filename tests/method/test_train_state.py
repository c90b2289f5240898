import jax
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.method import memory_bank, train_state
from dgia_jax.training import setup
from tests.helpers import recipe, tiny_run


def fresh(tmp_path_factory, **mesh):
  """A Run and its fresh state."""
  fields = {f"mesh__{axis}": size for axis, size in mesh.items()}
  run = setup.create(tiny_run.config(**fields), tmp_path_factory.mktemp("run"), tiny_run.splits())
  return run, train_state.create(run.mesh, setup.state_initializer(run))


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
  return fresh(tmp_path_factory, data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    first = jax.devices()[:1]
    create_mesh = sharding.create_mesh
    patch.setattr(
      sharding, "create_mesh", lambda **sizes: create_mesh(**sizes | {"devices": first})
    )
    return fresh(tmp_path_factory, data=1)


def test_bank_rows_are_born_on_all_devices(eight_devices):
  run, state = eight_devices
  num_rows = memory_bank.padded_rows(run.train_pairs.num_pairs)
  for leaf in jax.tree.leaves(state.bank):
    assert leaf.shape[0] == num_rows
    shards = leaf.addressable_shards
    assert {shard.data.shape[0] for shard in shards} == {num_rows // 8}
    assert len({shard.index[0].start for shard in shards}) == 8  # no two devices hold the same
  assert np.all(np.asarray(state.bank.group) == -1)
  assert not np.any(state.bank.image_inverse_norm) and not np.any(state.bank.image)
  assert state.bank.text.shape == (num_rows, tiny_run.SIZE.feature_width)


def test_parameters_and_moments_are_born_as_the_rules_say(eight_devices):
  run, state = eight_devices
  expected = train_state.layout(run.mesh, state)
  for leaf, layout in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    assert leaf.sharding.is_equivalent_to(layout, leaf.ndim)
  kernel = state.params["image"]["blocks"]["attention"]["qkv"]["kernel"]  # (1, 32, 3, 2, 16)
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(1, 16, 3, 1, 16)}
  moments = next(part for part in state.opt_state if hasattr(part, "nu"))
  nu = moments.nu["image"]["blocks"]["attention"]["qkv"]["kernel"]
  assert {shard.data.shape for shard in nu.addressable_shards} == {(1, 16, 3, 1, 16)}
  assert state.step.is_fully_replicated and state.step == 0 and state.step.dtype == np.int32


def test_parameters_are_the_same_numbers_on_one_device_and_on_eight(one_device, eight_devices):
  (_, one), (_, eight) = one_device, eight_devices
  assert len(jax.tree.leaves(one)[0].sharding.device_set) == 1
  names = [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(one)]
  for name, a, b in zip(names, jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b, err_msg=name)
  first, last = (
    np.asarray(one.params["image"][block]["mlp"]["up"]["kernel"])
    for block in ("blocks", "last_block")
  )
  assert first.std() > 0 and not np.array_equal(first[0], last)


def test_initializer_is_traceable_and_pads_the_bank():
  tx = recipe.create_optimizer(num_epochs=1, steps_per_epoch=1)
  init = train_state.initializer(
    lambda: {"kernel": jax.numpy.ones((2, 3))}, tx, num_pairs=3073, feature_dim=4
  )
  state = jax.eval_shape(init)
  assert state.bank.image.shape == (6144, 4) and state.params["kernel"].shape == (2, 3)
