import functools

import jax
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.method import caption_ranks, losses, memory_bank
from tests.helpers.compiled_bank import update
from tests.helpers.meshes import mesh_of

ONE = pytest.param((1, 1, 1), marks=pytest.mark.accelerator)


@pytest.mark.parametrize("mesh_shape", [ONE, (2, 2, 2)], ids=str)
@pytest.mark.parametrize("block_rows", [0, 5])
def test_ranks_equal_brute_force(mesh_shape, block_rows, rng):
  """Two captions per image; blocks that do not divide a shard; rows that were never written."""
  mesh, size = mesh_of(*mesh_shape), 96
  draw = lambda rows: rng.normal(size=(rows, 8)).astype(np.float32)
  bank = jax.jit(lambda: memory_bank.create(size, 8), out_shardings=sharding.bank_rows(mesh))()
  written = np.sort(rng.permutation(size)[:70]).astype(np.int32)
  images, texts = draw(70), draw(70)
  bank = update(bank, written, written // 2, images, texts, np.ones(70, np.float32), mesh=mesh)

  own, features = written[:10] // 2, (images[:10] + 0.5 * draw(10), texts[:10] + 0.5 * draw(10))
  rank = jax.jit(functools.partial(caption_ranks.caption_ranks, mesh=mesh, block_rows=block_rows))
  ranks = rank(bank, *features, own)
  own_scores = np.diagonal(losses.cosine(*features))
  better = np.asarray(losses.cosine(features[0], texts)) > own_scores[:, None]
  expected = np.sum(better & (written[None, :] // 2 != own[:, None]), axis=1)
  assert len(set(expected)) > 5 and np.any(expected != np.sum(better, axis=1))
  np.testing.assert_array_equal(ranks, expected)
