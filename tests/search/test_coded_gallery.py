"""A search by codes returns what scoring all features in float64 returns, whatever the features."""

import numpy as np
import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import coded_gallery, exact
from dgia_jax.search import codes as codes_lib
from dgia_jax.search.coded_gallery import CodedGallery
from dgia_jax.search.gallery import Gallery
from tests.helpers.meshes import mesh_of

DIM = 24


def unit(rows):
  norm = np.linalg.norm(rows, axis=1, keepdims=True)
  return (rows / np.where(norm > 0, norm, 1)).astype(np.float32)


def random(rng, count=3000):
  return unit(rng.normal(size=(count, DIM)))


def persons(rng, count=3000):
  """Images of 30 persons, which share most of their feature."""
  person = rng.normal(size=(30, DIM))[rng.integers(0, 30, count)]
  return unit(5 * rng.normal(size=DIM) + person + 0.05 * rng.normal(size=(count, DIM)))


def duplicates(rng, count=3000):
  return random(rng, 40)[rng.integers(0, 40, count)]


def huge_range(rng, count=3000):
  """Numbers from 1e-30 to 1, some rows along one axis, rows and dimensions of zeros."""
  rows = rng.normal(size=(count, DIM)) * 10.0 ** rng.uniform(-30, 0, (count, DIM))
  rows[:DIM], rows[:, 3] = np.eye(DIM), 0
  rows[100:140] = 0
  return unit(rows)


KINDS = (random, persons, duplicates, huge_range)


def gallery_of(features, usable=None):
  sample = features[::3]
  center, spread = sample.mean(axis=0), codes_lib._spread(sample)
  codes, rows = codes_lib.encode(features, center, spread)
  fields = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names}
  usable = np.ones(len(features), bool) if usable is None else usable
  return CodedGallery(
    codes_lib.Codes(codes, center, spread, **fields), usable, lambda rows: features[rows]
  )


def brute_force(features, queries, top, among):
  """Scores and rows by all features, in float64."""
  queries = exact.unit_queries(queries)
  rows = np.flatnonzero(among)
  all_scores = [(features[rows].astype(float) * query).sum(axis=1) for query in queries]
  order = [np.argsort(-scores, kind="stable")[:top] for scores in all_scores]
  scores = [scores[best] for scores, best in zip(all_scores, order, strict=True)]
  return np.array(scores, np.float32), np.array([rows[best] for best in order])


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("num_queries", [1, 2, 6, 22])
@pytest.mark.parametrize("top", [1, 20, 500])
def test_results_equal_brute_force(features, num_queries, top, rng):
  rows = features(rng)
  queries = np.concatenate([features(rng)[:2], rows[50:52], np.zeros((1, DIM)), -rows[:1]])
  queries = queries[rng.permutation(24)[:num_queries] % 6].astype(np.float32)
  usable = rng.random(len(rows)) < 0.9
  for among in (usable, usable & (rng.random(len(rows)) < 0.02)):
    scores, best = gallery_of(rows, usable).search(queries, top, among)
    expected_scores, expected = brute_force(rows, queries, top, among)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("features", KINDS)
def test_coded_scores_are_off_by_the_bound_at_most(features, rng):
  rows = features(rng)
  gallery = gallery_of(rows)
  queries = exact.unit_queries(np.concatenate([features(rng)[:3], rows[7:8]]))
  for some in (queries[:1], queries):
    for query, scored in zip(some, gallery._passes(some, np.ones(3000, bool)), strict=True):
      place = np.arange(scored.scores_GxSxJ.size)
      number = gallery._rows(scored, place // 128, place % 128)
      scores = scored.scores_GxSxJ.ravel() + query @ gallery._codes.center
      bound = gallery._codes.error + scored.rounding * gallery._codes.norm + 1e-6
      searched = scores > -np.inf
      assert sorted(number[searched]) == list(range(3000))  # each row once
      difference = np.abs(scores - rows[number] @ query)[searched]
      assert (difference <= bound[number][searched]).all()


def test_the_digits_of_a_rounded_query_add_up():
  integers = np.arange(-127 * 256, 127 * 256 + 1, dtype=float)
  unit, rounded, (high, low) = coded_gallery._rounded(0.25 * integers[None])
  np.testing.assert_array_equal(rounded[0], integers)
  np.testing.assert_array_equal(256.0 * high + low, rounded)
  assert unit == 0.25 and high.dtype == low.dtype == np.int8
  assert not coded_gallery._rounded(np.zeros((2, 3)))[1].any()


def test_few_features_are_read(rng):
  gallery = gallery_of(random(rng))
  gallery.search(random(rng, 10), 5)
  assert 5 * 10 <= gallery.num_rescored < 30 * 10


def test_rows_whose_codes_are_far_off_are_still_found(rng):
  """The best row has a code that says nothing about it, so only its bound brings it back."""
  features = random(rng)
  gallery = gallery_of(features)
  for row in (0, 1500, 2999):  # also in the block that is moved back
    assert gallery.search(features[row : row + 1], 1)[1].tolist() == [[row]]
    codes, error = gallery._codes.codes.copy(), gallery._codes.error.copy()
    codes[row], error[row] = -codes[row], 2.1
    fields = {**vars(gallery._codes), "codes": codes, "error": error}
    misled = CodedGallery(codes_lib.Codes(**fields), np.ones(3000, bool), lambda r: features[r])
    assert misled.search(features[row : row + 1], 1)[1].tolist() == [[row]]
    fields["error"] = gallery._codes.error  # without its bound it is missed
    missed = CodedGallery(codes_lib.Codes(**fields), np.ones(3000, bool), lambda r: features[r])
    assert missed.search(features[row : row + 1], 1)[1].tolist() != [[row]]


def test_the_histogram_counts_all_rows_that_can_be_results(rng):
  features, usable = persons(rng), rng.random(3000) < 0.5
  counts = gallery_of(features, usable).histogram(features[3])
  plain = Gallery(features, mesh_of(1, 1, 1), usable).histogram(features[3])
  assert counts.sum() == plain.sum() == usable.sum()
  assert np.abs(np.cumsum(counts) - np.cumsum(plain)).max() < 0.1 * usable.sum()


def test_a_search_by_float32_is_ordered_exactly_too(rng, monkeypatch):
  """More duplicates than spare rows force it to search again with more of them."""
  features = duplicates(rng)
  gallery = Gallery(features, mesh_of(1, 1, 1), np.ones(3000, bool))
  wanted = []
  search = gallery.search
  monkeypatch.setattr(gallery, "search", lambda q, top, a: wanted.append(top) or search(q, top, a))
  queries = random(rng, 3)
  scores, rows = exact.ExactGallery(gallery, lambda rows: features[rows]).search(queries, 20)
  expected_scores, expected = brute_force(features, queries, 20, np.ones(3000, bool))
  np.testing.assert_array_equal(rows, expected)
  np.testing.assert_array_equal(scores, expected_scores)
  assert wanted == [36, 84, 276]


def test_nothing_to_find_and_mistakes(rng):
  features = random(rng)
  gallery = gallery_of(features)
  assert gallery.search(features[:2], 5, np.zeros(3000, bool))[0].shape == (2, 0)
  assert gallery.search(features[:0], 5)[1].shape == (0, 5)
  with pytest.raises(UserError, match="NaN"):
    gallery.search(features[:1] * np.nan, 5)
  assert not coded_gallery.serves(mesh_of(2, 1, 1)) and coded_gallery.serves(mesh_of(1, 1, 1))
