"""An image may be trained with the caption of a neighbour that was mined for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.method import caption_exchange
from dgia_jax.method.global_association import Neighbours
from tests.helpers.meshes import mesh_of

ROWS, LENGTH = 16, 4
KEY = jax.random.key(5)


@pytest.fixture(params=[(1, 1, 1), (2, 2, 2)], ids=str)
def mesh(request):
  return mesh_of(*request.param)


def memory_on(mesh, tokens, neighbours):
  """A memory that holds the given rows, split over the mesh."""
  memory = caption_exchange.PairMemory(jnp.asarray(tokens), jnp.asarray(neighbours))
  return jax.device_put(memory, sharding.bank_rows(mesh))


def test_all_neighbours_are_equally_likely_and_empty_slots_are_never_drawn():
  neighbours = np.tile(np.int32([[4, -1, 9], [-1, -1, -1], [7, 8, 6]]), (4000, 1))
  rows = np.asarray(caption_exchange.draw_rows(KEY, neighbours, 0.75)).reshape(4000, 3)
  assert set(rows[:, 1]) == {-1}
  shares = lambda column, row: np.mean(rows[:, column] == row)
  # Four standard deviations of a share of 4,000 draws are at most 0.032.
  for row, share in ((4, 0.375), (9, 0.375), (-1, 0.25)):
    assert abs(shares(0, row) - share) < 0.032
  for row, share in ((6, 0.25), (7, 0.25), (8, 0.25), (-1, 0.25)):
    assert abs(shares(2, row) - share) < 0.032


def test_the_pairs_of_a_batch_draw_for_themselves():
  rows = caption_exchange.draw_rows(KEY, np.tile(np.int32([[1, 2, 3]]), (64, 1)), 1.0)
  assert set(np.asarray(rows)) == {1, 2, 3}


def test_a_pair_takes_the_caption_of_its_neighbour(mesh):
  tokens = np.arange(ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH)
  neighbours = np.full((ROWS, 2), -1, np.int32)
  neighbours[3, 1], neighbours[5, 0], neighbours[6, 0] = 12, 9, 1
  batch = {
    "index": np.int32([3, 4, 5, 6]),
    "tokens": tokens[[3, 4, 5, 6]] + 100,
    "mask": np.array([True, True, True, False]),
  }
  memory = memory_on(mesh, tokens, neighbours)
  exchange = functools.partial(caption_exchange.exchanged_tokens, mesh=mesh)
  exchanged = jax.jit(functools.partial(exchange, prob=1.0))(memory, batch, KEY)
  np.testing.assert_array_equal(exchanged[0], tokens[12])
  np.testing.assert_array_equal(exchanged[1], batch["tokens"][1])  # has no neighbour
  np.testing.assert_array_equal(exchanged[2], tokens[9])
  np.testing.assert_array_equal(exchanged[3], batch["tokens"][3])  # is padding
  kept = jax.jit(functools.partial(exchange, prob=0.0))(memory, batch, KEY)
  np.testing.assert_array_equal(kept, batch["tokens"])


def test_a_batch_writes_its_own_rows(mesh):
  memory = memory_on(mesh, np.zeros((ROWS, LENGTH), np.int32), np.full((ROWS, 2), -1, np.int32))
  batch = {
    "index": np.int32([3, 15, 0]),
    "tokens": np.int32([[5] * LENGTH, [6] * LENGTH, [7] * LENGTH]),
  }
  mined = Neighbours(
    np.int32([[1, 2], [9, 8], [4, 4]]),
    np.ones((3, 2), np.float32),
    np.array([[True, False], [True, True], [True, True]]),
  )
  after = jax.jit(functools.partial(caption_exchange.remember, mesh=mesh))(
    memory, batch, mined, row_mask=np.array([True, True, False])
  )
  tokens, neighbours = np.asarray(after.tokens), np.asarray(after.neighbours)
  np.testing.assert_array_equal(tokens[[3, 15]], batch["tokens"][:2])
  np.testing.assert_array_equal(neighbours[[3, 15]], [[1, -1], [9, 8]])
  others = np.setdiff1d(np.arange(ROWS), [3, 15])
  assert not tokens[others].any() and (neighbours[others] == -1).all()


def test_a_fresh_memory_exchanges_nothing(mesh):
  create = functools.partial(caption_exchange.create, ROWS, LENGTH, 3)
  memory = jax.jit(create, out_shardings=sharding.bank_rows(mesh))()
  batch = {
    "index": np.int32([1, 2]), "tokens": np.ones((2, LENGTH), np.int32), "mask": np.ones(2, bool),
  }  # fmt: skip
  exchanged = caption_exchange.exchanged_tokens(memory, batch, KEY, 1.0, mesh=mesh)
  np.testing.assert_array_equal(exchanged, batch["tokens"])
