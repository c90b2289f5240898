"""Several wishes become one query."""

import numpy as np

from dgia_jax.search.query import LESS_WEIGHT, combine


def unit(*values):
  return np.asarray(values, np.float32) / np.linalg.norm(values)


def test_the_query_points_between_what_is_wanted():
  one, other = unit(1, 0, 0), unit(0, 1, 0)
  np.testing.assert_allclose(combine(np.stack([one, other])), unit(1, 1, 0), atol=1e-6)
  np.testing.assert_allclose(combine(one[None]), one, atol=1e-6)


def test_the_query_points_away_from_what_is_not_wanted():
  wanted, unwanted = unit(1, 1, 0), unit(0, 1, 1)
  query = combine(wanted[None], unwanted[None])
  np.testing.assert_allclose(query, unit(*(wanted - LESS_WEIGHT * unwanted)), atol=1e-6)
  assert query @ unwanted < wanted @ unwanted
  np.testing.assert_allclose(combine(wanted[None], np.zeros((0, 3))), wanted, atol=1e-6)
