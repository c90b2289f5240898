import jax
import jax.numpy as jnp
import numpy as np

from dgia_jax.method import calibration, global_association, losses
from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.mining import FeaturePair

REAL = np.arange(64) < 60


def test_the_curve_is_that_of_two_normal_distributions():
  """Own captions have cosines of 0.6 +- 0.1, others 0.1 +- 0.1: at 0.35, both are as probable."""
  known = 0.1 + 0.1 * np.where(np.triu(np.ones((64, 64))), 1.0, -1.0)
  known[np.diag_indices(64)] = 0.6 + 0.1 * (-1.0) ** np.arange(64)
  known[60:], known[:, 60:] = 5.0, -5.0  # padding
  scores = np.float32([[0.1, 0.3], [0.35, 0.4]])
  actual = np.exp(calibration.log_probability(scores, jnp.float32(known), REAL))
  expected = 1 / (1 + np.exp(-(0.5 / 0.01) * (scores - 0.35)))
  np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_a_neighbour_gets_its_probability_times_the_share_of_the_pair(rng):
  draw = lambda *shape: rng.normal(size=(64, *shape)).astype(np.float32)
  image = draw(16)
  features = FeaturePair(image, image + 0.5 * draw(16))
  near = image[:, None] + draw(2, 16) * np.float32([[[0.5], [3.0]]])
  labels = calibration.neighbour_labels(features, near, near[:, ::-1], REAL)
  probabilities = np.exp(labels - 1)
  # Slot 0 has a near image and a far caption, slot 1 the reverse.
  assert np.all((probabilities > 0.99e-6) & (probabilities <= 1))
  both_near = calibration.neighbour_labels(features, near[:, :1], near[:, :1], REAL)
  assert np.mean(both_near) > np.mean(labels) + 0.5

  valid = np.stack([np.ones(64, bool), np.arange(64) % 2 == 0], axis=1)
  neighbours = Neighbours(np.zeros((64, 2), int), np.full((64, 2), 0.8, np.float32), valid)
  extended = global_association.extended_labels(neighbours, weights=labels)
  targets = np.asarray(losses.target_distribution(extended))
  for pair in (0, 1, 63):
    row = targets[3 * pair]
    expected = row[3 * pair] * np.where(valid[pair], probabilities[pair], 0.0)
    np.testing.assert_allclose(row[3 * pair + 1 : 3 * pair + 3], expected, rtol=1e-4, atol=1e-9)
    assert np.isclose(row[3 * pair : 3 * pair + 3].sum(), 1.0)


def test_labels_carry_no_gradient(rng):
  image, text = rng.normal(size=(2, 8, 4)).astype(np.float32)
  mined = rng.normal(size=(8, 3, 4)).astype(np.float32)
  total = lambda v: calibration.neighbour_labels(
    FeaturePair(v, text), mined, mined, np.ones(8, bool)
  ).sum()
  assert not np.any(jax.grad(total)(image))
