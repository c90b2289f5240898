"""An order of pairs led by neighbours is a permutation in which neighbours meet."""

import numpy as np
import pytest

from dgia_jax.data.guided_order import guided_order

# Persons of four pairs each, who find each other: 0-3, 4-7, ...
MATES = np.array(
  [[4 * (row // 4) + (row + step) % 4 for step in (1, 2, 3)] for row in range(400)], np.int32
)


def persons_together(order, size):
  """How many other pairs of its person a pair finds in its stretch of `size` places, on average."""
  persons = (order // 4).reshape(-1, size)
  return np.mean([np.mean(np.sum(row[:, None] == row, axis=1) - 1) for row in persons])


@pytest.mark.parametrize("group, together", [(2, 1.0), (4, 3.0)])
def test_mates_stand_together_and_groups_do_not(group, together):
  order = guided_order(MATES, group, seed=0, epoch=1)
  np.testing.assert_array_equal(np.sort(order), np.arange(400))
  assert order.dtype == np.int32
  assert persons_together(order, group) == together
  steps = np.diff(order[::group])
  assert np.abs(steps).mean() > 80  # as far apart as chance has them


def test_a_pair_without_free_neighbours_stands_alone():
  neighbours = np.array([[1, 2], [0, 2], [1, 0], [-1, -1], [3, -1]], np.int32)
  for epoch in range(8):
    order = guided_order(neighbours, 3, seed=3, epoch=epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(5))
    at = np.argsort(order)
    assert max(at[:3]) - min(at[:3]) == 2


def test_orders_differ_by_seed_and_epoch_only():
  first = guided_order(MATES, 3, seed=0, epoch=1)
  np.testing.assert_array_equal(first, guided_order(MATES, 3, seed=0, epoch=1))
  assert (first != guided_order(MATES, 3, seed=0, epoch=2)).any()
  assert (first != guided_order(MATES, 3, seed=1, epoch=1)).any()
