"""Several wishes become one query, which an address carries."""

import os
import urllib.parse

import numpy as np
import pytest

from dgia_jax.search.query import LESS_WEIGHT, Query, combine, image_key, row_of


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


def params_of(address):
  return dict(urllib.parse.parse_qsl(address.removeprefix("?")))


def test_addresses_carry_the_query():
  for query in (
    Query(),
    Query("a red coat & hat", "3:a/b c.jpg", "7:x:y&z.png", "*/x?[a]", 9),
    Query(like="0:a"),
    Query("ü", top=1, page=12),
  ):
    assert Query.from_address(params_of(query.to_address()), 20) == query
  assert Query.from_address({"top": "9" * 5000, "q": "red"}, 20) == Query("red")


def test_an_image_in_an_address_is_found_after_a_compaction():
  paths = ["gone.png", "a:1.png", os.fsdecode(b"caf\xe9.png"), "12.png", "old.png", "old.png"]
  usable = np.array([1, 2, 3, 5])
  for row in usable:
    query = Query(like=image_key(int(row), paths[row]))
    key = Query.from_address(params_of(query.to_address()), 20).like
    assert row_of(key, paths, usable) == row
    compacted = [path for place, path in enumerate(paths) if place in usable]
    assert compacted[row_of(key, compacted, np.arange(4))] == paths[row]
  assert row_of(image_key(4, "old.png"), paths, usable) == 5  # it was changed
  assert row_of("3", paths, usable) == 3  # an address of an earlier version


@pytest.mark.parametrize(
  "key", ["", "../x", "-1", "0", "0:gone.png", "1:other.png", "99:", "9" * 5000, "²:a:1.png", ":"]
)
def test_what_names_no_image_is_ignored(key):
  assert row_of(key, ["gone.png", "a:1.png"], np.array([1])) is None
