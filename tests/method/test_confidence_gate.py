import jax.numpy as jnp
import numpy as np

from dgia_jax.method.confidence_gate import gated_update_rate


def test_the_gate_scales_the_rate_by_the_pairs_own_cosine():
  image = jnp.array([[1.0, 0], [1, 0], [1, 0]])
  text = jnp.array([[3.0, 0], [1, 1], [-1, 0]])
  gated = gated_update_rate(image, text, 0.9, True)
  np.testing.assert_allclose(gated, [0.9, 0.9 * 0.5**0.5, 0.0], atol=1e-6)
  constant = gated_update_rate(image, text, 0.9, False)
  np.testing.assert_allclose(constant, [0.9] * 3, rtol=1e-6)
