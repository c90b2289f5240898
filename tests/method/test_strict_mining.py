import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dgia_jax.method import losses, mining, strict_mining
from dgia_jax.method.global_association import Neighbours

pytestmark = pytest.mark.accelerator


def test_a_raised_threshold_follows_the_batch(rng):
  features = rng.normal(size=(6, 4)) + 3.0
  features[5] = 100.0 * rng.normal(size=4)  # padding, which must not count
  cosine = np.asarray(losses.cosine(features, features))
  mask = np.arange(6) < 5
  others = cosine[:5, :5][~np.eye(5, dtype=bool)]
  raised = strict_mining.raised_threshold(cosine, 0.1, 1.5, mask)
  spread = np.arctanh(others)
  np.testing.assert_allclose(raised, np.tanh(spread.mean() + 1.5 * spread.std()), rtol=1e-5)
  # However widely cosines spread, something can be above the threshold.
  wide = rng.uniform(0.0, 0.95, (200, 200))
  assert wide.mean() + 2.5 * wide.std() > 1
  assert 0.9 < strict_mining.raised_threshold(wide, 0.1, 2.5) < 0.99
  assert strict_mining.raised_threshold(cosine, 0.9999, 0.1, mask) == np.float32(0.9999)
  assert strict_mining.raised_threshold(cosine, 0.3, 0.0, mask) == 0.3


def test_local_relations_follow_the_batch(rng):
  image, text = rng.normal(size=(2, 8, 3)).astype(np.float32) + 2.0
  settings = ConfigDict({"threshold": 0.0, "modality": "both"})
  strict = ConfigDict({"local_threshold_num_stds": 0.3})
  features, batch = mining.FeaturePair(image, text), {"mask": np.ones(8, bool)}
  fixed = mining.mine_local(features, batch, settings=settings)
  chosen = strict_mining.mine_local(features, batch, settings=settings, strict=strict)
  assert fixed.all() and 8 < chosen.sum() < 64
  cosines = [np.asarray(losses.cosine(each, each)) for each in (image, text)]
  expected = np.ones((8, 8), bool)
  for cosine in cosines:
    others = cosine[~np.eye(8, dtype=bool)]
    spread = np.arctanh(others)
    expected &= cosine > np.tanh(spread.mean() + 0.3 * spread.std())
  np.testing.assert_array_equal(chosen, expected | np.eye(8, dtype=bool))


def test_neighbours_must_match_in_text_and_retrieve_the_anchor():
  neighbours = Neighbours(
    jnp.array([[4, 5, 6]]), jnp.array([[0.9, 0.8, 0.75]]), jnp.array([[True, True, False]])
  )
  text = jnp.array([[1.0, 0.0]])
  texts = jnp.array([[[3.0, 0.1], [0.0, 1.0], [1.0, 0.0]]])
  matches = strict_mining.keep_text_matches(neighbours, text, texts, 0.7)
  np.testing.assert_array_equal(matches.valid, [[True, False, False]])
  retrieved = jnp.array([[[4, 9], [5, 2], [2, 6]]])
  reciprocal = strict_mining.keep_reciprocal(neighbours, jnp.array([2]), retrieved)
  np.testing.assert_array_equal(reciprocal.valid, [[False, True, False]])
  np.testing.assert_array_equal(reciprocal.rows, neighbours.rows)
