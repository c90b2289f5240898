"""Corrections at test time against plain NumPy, one item at a time."""

import jax
import numpy as np
import pytest

from dgia_jax.training import test_time

GALLERY, WIDTH = 37, 8


def features(seed, count=GALLERY):
  """Unnormalised features around a few centres, so that neighbourhoods overlap."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(6, WIDTH))
  noise = rng.normal(size=(count, WIDTH))
  return (centres[rng.integers(0, 6, count)] + 0.7 * noise).astype(np.float32)


def unit(x):
  x = np.asarray(x, np.float64)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_smooth(gallery, k):
  gallery, rows = unit(gallery), []
  for i, g in enumerate(gallery):
    others = sorted((j for j in range(len(gallery)) if j != i), key=lambda j: -g @ gallery[j])
    rows.append(g + sum(max(g @ gallery[j], 0) ** 3 * gallery[j] for j in others[:k]))
  return unit(rows)


def slow_hubness(gallery, references, k):
  cosines = unit(gallery) @ unit(references).T
  return np.array([np.mean(sorted(row)[::-1][:k]) for row in cosines])


def slow_overlap(candidates, k):
  """By sets and dictionaries: as the docstring defines it."""
  candidates = unit(candidates)
  count = len(candidates)
  k = min(k, count)
  order = [
    sorted(range(count), key=lambda j: (j != i, -candidates[i] @ candidates[j]))
    for i in range(count)
  ]
  near = [set(order[i][: k + 1]) for i in range(count)]
  reciprocal = [{j for j in near[i] if i in near[j]} for i in range(count)]
  overlap = []
  query = {j: 1 / k for j in range(k)}
  for i in range(count):
    vector = dict.fromkeys(range(count), 0.0)
    expansion = order[i][: min(3, k + 1)]
    for j in expansion:
      for member in reciprocal[j]:
        vector[member] += 1 / len(reciprocal[j]) / len(expansion)
    pairs = [(vector[j], query.get(j, 0.0)) for j in range(count)]
    overlap.append(sum(map(min, pairs)) / sum(map(max, pairs)))
  return np.array(overlap)


@pytest.mark.parametrize("k", [1, 4, GALLERY + 5])
def test_smoothing(k):
  gallery = features(0)
  expected = slow_smooth(gallery, k)
  assert np.abs(expected - unit(gallery)).max() > 0.05
  for block in (1, 5, GALLERY, 1000):
    np.testing.assert_allclose(test_time.smooth(gallery, k, block), expected, atol=2e-6)


def test_smoothing_one_image_returns_it():
  np.testing.assert_allclose(test_time.smooth(features(1, 1), 3), unit(features(1, 1)), atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_hubness(k):
  gallery, references = features(2), features(3, 23)
  expected = slow_hubness(gallery, references, k)
  for block in (1, 5, GALLERY, 1000):
    measured = test_time.hubness(gallery, references, k, block)
    np.testing.assert_allclose(measured, expected, atol=1e-6)


@pytest.mark.parametrize("count, k", [(20, 4), (20, 1), (5, 10), (1, 3), (2, 2)])
def test_overlap_of_neighbourhoods(count, k):
  candidates = unit(features(4, count)).astype(np.float32)
  overlap = test_time.neighbourhood_overlap(candidates, k)
  np.testing.assert_allclose(overlap, slow_overlap(candidates, k), atol=1e-6)
  assert (overlap >= 0).all() and (overlap <= 1).all()


def test_copies_of_an_image_have_neighbourhoods():
  candidates = np.tile(unit(features(5, 1)).astype(np.float32), (9, 1))
  assert np.isfinite(test_time.neighbourhood_overlap(candidates, 2)).all()


@pytest.mark.parametrize("count", [1, 7, GALLERY, GALLERY + 9])
def test_reranking(count):
  gallery, queries = unit(features(6)), unit(features(7, 11))
  similarity = (queries @ gallery.T).astype(np.float32)
  expected = similarity.astype(np.float64)
  for row in expected:
    best = np.argsort(-row, kind="stable")[:count]
    row[best] += 1.5 * slow_overlap(gallery[best], 4)
  rerank = jax.jit(test_time.rerank, static_argnums=(2, 3, 4))
  ranked = rerank(similarity, gallery.astype(np.float32), count, 4, 1.5)
  np.testing.assert_allclose(ranked, expected, atol=1e-5)
  if count < GALLERY:  # the others keep their scores and come after the candidates
    changed = np.argsort(-similarity, axis=1)[:, :count]
    others = np.ones_like(similarity, bool)
    np.put_along_axis(others, changed, False, axis=1)
    assert (np.asarray(ranked)[others] == similarity[others]).all()
  assert (np.asarray(rerank(similarity, gallery, count, 4, 0.0)) == similarity).all()


def test_a_query_without_a_defined_ranking_stays_so():
  similarity = np.full((1, GALLERY), np.nan, np.float32)
  ranked = test_time.rerank(similarity, unit(features(8)).astype(np.float32), 5, 3, 1.0)
  assert np.isnan(ranked).all()
