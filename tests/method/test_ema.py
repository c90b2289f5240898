import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax.method import ema


def test_the_average_follows_its_definition():
  average, expected, rng = {"w": jnp.zeros(3)}, np.zeros(3), np.random.default_rng(0)
  for step in range(30):
    weights = rng.normal(size=3).astype(np.float32)
    average = ema.update(average, {"w": jnp.asarray(weights)}, 0.7, jnp.int32(step))
    decay = min(0.7, (1 + step) / (10 + step))  # the second until step 20
    expected = decay * expected + (1 - decay) * weights
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5, atol=1e-6)


def test_an_average_with_the_initial_weights_follows_its_definition():
  rng = np.random.default_rng(0)
  draw = lambda: {
    "text": {"token_embedding": rng.normal(size=(4, 3)), "projection": rng.normal(size=(3, 2))}
  }
  start = after = jax.tree.map(jnp.float32, draw())
  average = start
  for _ in range(30):
    before, after = after, jax.tree.map(jnp.float32, draw())
    average = ema.update_with_initial(average, before, after, 0.4)
  text = average["text"]
  expected = 0.4 * start["text"]["projection"] + 0.6 * after["text"]["projection"]
  np.testing.assert_allclose(text["projection"], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(text["token_embedding"], after["text"]["token_embedding"])


@pytest.mark.parametrize(
  "settings, expected",
  [
    ({}, False),  # of a release without averages
    ({"decay": 0.0}, False),
    ({"decay": 0.5}, True),
    ({"decay": 0.0, "initial_share": 0.4}, True),
  ],
)
def test_an_average_is_on_if_one_of_its_settings_is(settings, expected):
  assert ema.is_on(settings) is expected


def test_none_stays_none():
  assert ema.update(None, {"w": jnp.ones(3)}, 0.0, jnp.int32(5)) is None
