import jax
import numpy as np
import pytest

from dgia_jax.method import local_association, losses
from tests.helpers.golden_data import assert_gradient, assert_loss, cases, description

pytestmark = pytest.mark.accelerator

ITC_TEMPERATURES = {17: 0.1}  # all other reference cases use 1/50


@pytest.mark.parametrize("number, case", cases("p01_itc"))
def test_itc_equals_reference(number, case):
  temperature = ITC_TEMPERATURES.get(number, 0.02)
  loss = lambda image, text: losses.itc(image, text, temperature)
  value, gradients = jax.value_and_grad(loss, (0, 1))(case["i"], case["t"])
  assert_loss(value, case["loss_f64"])
  assert_gradient(gradients[0], case["gi"])
  assert_gradient(gradients[1], case["gt"])


def test_itc_of_the_paper_is_the_sum_of_directions(rng):
  image, text = rng.normal(size=(2, 6, 8)).astype(np.float32)
  assert_loss(losses.itc(image, text, reduction="sum"), 2 * losses.itc(image, text))
  with pytest.raises(ValueError, match="median"):
    losses.itc(image, text, reduction="median")


def test_label_smoothing_spreads_a_share_of_the_targets_evenly(rng):
  image, text = rng.normal(size=(2, 6, 8)).astype(np.float32)
  logits = np.asarray(losses.cosine(image, text)) / 0.02
  targets = 0.7 * np.eye(6) + 0.3 / 6
  cross_entropy = lambda rows: -np.mean(np.sum(targets * jax.nn.log_softmax(rows), axis=1))
  expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
  assert_loss(losses.itc(image, text, label_smoothing=0.3), expected)


@pytest.mark.parametrize("number, case", cases("p02_local"))
def test_matching_equals_reference(number, case):
  del number
  loss = lambda image, text: losses.similarity_distribution_matching(image, text, case["q"])
  value, gradients = jax.value_and_grad(loss, (0, 1))(case["i"], case["t"])
  assert_loss(value, case["loss_f64"])
  assert_gradient(gradients[0], case["gi"])
  assert_gradient(gradients[1], case["gt"])


def _padded(rng, padding):
  image, text = rng.normal(size=(2, 6, 8)).astype(np.float32)
  junk = rng.normal(size=(2, padding, 8)).astype(np.float32)
  mask = np.arange(6 + padding) < 6
  return image, text, np.concatenate([image, junk[0]]), np.concatenate([text, junk[1]]), mask


def test_padded_rows_change_no_loss_and_no_gradient(rng):
  image, text, image_p, text_p, mask = _padded(rng, 3)
  targets = local_association.local_targets(image, text, threshold=0.1)
  relations_p = local_association.local_relations(image_p, text_p, threshold=0.1, row_mask=mask)
  targets_p = local_association.relation_targets(relations_p, 0.1)
  for plain, padded in (
    (losses.itc, lambda v, t: losses.itc(v, t, row_mask=mask)),
    (
      lambda v, t: losses.itc(v, t, label_smoothing=0.3),
      lambda v, t: losses.itc(v, t, row_mask=mask, label_smoothing=0.3),
    ),
    (
      lambda v, t: losses.similarity_distribution_matching(v, t, targets),
      lambda v, t: losses.similarity_distribution_matching(v, t, targets_p, row_mask=mask),
    ),
  ):
    value, gradient = jax.value_and_grad(plain)(image, text)
    value_p, gradient_p = jax.value_and_grad(padded)(image_p, text_p)
    np.testing.assert_allclose(value_p, value, rtol=1e-6)
    np.testing.assert_allclose(gradient_p[:6], gradient, rtol=1e-5, atol=1e-7)
    assert not np.any(gradient_p[6:])


def test_rows_of_zeros_have_finite_gradients(rng):
  image, text, image_p, text_p, mask = _padded(rng, 2)
  image_p[6:], text_p[6:] = 0.0, 0.0
  gradient = jax.grad(lambda v: losses.itc(v, text_p, row_mask=mask))(image_p)
  assert np.isfinite(gradient).all() and not np.any(gradient[6:])


def test_reference_files_describe_what_is_tested():
  assert {number for number, _ in cases("p02_local")} == {
    case["case"] for case in description("p02_local")
  }
