"""Neighbours of all pairs from the bank, on any mesh, and the order that is kept for a resume."""

import jax
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.method import memory_bank
from dgia_jax.training import sampling, setup
from tests.helpers import compiled_bank, tiny_run


def make_run(workdir, mesh=(1, 1, 1), **fields):
  devices = jax.devices()[: int(np.prod(mesh))]
  parts = setup.build(
    tiny_run.config(sampling__group=4, mesh__data=8, **fields), workdir, tiny_run.splits()
  )
  return setup.dataclasses.replace(parts, mesh=sharding.create_mesh(*mesh, devices=devices))


def fill_bank(run, images):
  """A bank whose rows are the given image features."""
  rows = memory_bank.padded_rows(len(images))
  bank = jax.jit(
    lambda: memory_bank.create(rows, images.shape[1]), out_shardings=sharding.bank_rows(run.mesh)
  )()
  index = np.arange(len(images), dtype=np.int32)
  weight = np.ones(len(images), np.float32)
  return compiled_bank.update(bank, index, index, images, -images, weight, mesh=run.mesh)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_neighbours_equal_brute_force_without_the_own_image(tmp_path, rng, mesh):
  run = make_run(tmp_path, mesh)
  images = rng.normal(size=(36, 5)).astype(np.float32)
  found = sampling.neighbours_of_all(run, fill_bank(run, images))
  unit = images / np.linalg.norm(images, axis=1, keepdims=True)
  scores = unit @ unit.T
  image_N = run.train_pairs.image_of_pair_N
  scores[image_N[:, None] == image_N[None, :]] = -np.inf
  np.testing.assert_array_equal(found, np.argsort(-scores, axis=1)[:, :3])


def test_the_order_of_an_epoch_is_kept_until_the_next(tmp_path, rng):
  run = make_run(tmp_path)
  steps = run.steps_per_epoch
  banks = [fill_bank(run, rng.normal(size=(36, 5)).astype(np.float32)) for _ in range(2)]
  assert sampling.order_of_epoch(run, banks[0], 0) is None  # the bank is still being filled
  order = sampling.order_of_epoch(run, banks[0], steps)
  # Whatever the bank has become: the epoch goes on as it began.
  np.testing.assert_array_equal(sampling.order_of_epoch(run, banks[1], steps + 2), order)
  assert (sampling.order_of_epoch(run, banks[1], 2 * steps) != order).any()
  with pytest.raises(UserError, match="another epoch"):
    sampling.order_of_epoch(run, banks[0], steps + 2)
  (tmp_path / sampling.FILE).write_bytes(b"PK")
  with pytest.raises(UserError, match="order.npz cannot be read"):
    sampling.order_of_epoch(run, banks[0], 2 * steps + 1)


def test_random_sampling_needs_no_bank(tmp_path):
  run = make_run(tmp_path)
  run.config.sampling.group = 1
  assert sampling.order_of_epoch(run, None, 10) is None
  assert not (tmp_path / sampling.FILE).exists()
