import jax.numpy as jnp
import numpy as np

from dgia_jax.method import ema


def test_the_average_follows_its_definition():
  average, expected, rng = {"w": jnp.zeros(3)}, np.zeros(3), np.random.default_rng(0)
  for step in range(30):
    weights = rng.normal(size=3).astype(np.float32)
    average = ema.update(average, {"w": jnp.asarray(weights)}, 0.7, jnp.int32(step))
    decay = min(0.7, (1 + step) / (10 + step))  # the second until step 20
    expected = decay * expected + (1 - decay) * weights
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5, atol=1e-6)


def test_none_stays_none():
  assert ema.update(None, {"w": jnp.ones(3)}, 0.0, jnp.int32(5)) is None
