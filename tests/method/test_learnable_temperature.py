import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax.method import learnable_temperature
from tests.helpers import recipe

NAME = learnable_temperature.NAME


def test_the_parameter_is_clips_logit_scale():
  params = {NAME: learnable_temperature.create(0.02)}
  assert float(jnp.exp(params[NAME])) == pytest.approx(50)
  assert float(learnable_temperature.temperature_of(params, 0.5)) == pytest.approx(0.02)
  assert learnable_temperature.temperature_of({}, 0.5) == 0.5


def steps(gradients, start=0.02):
  """Temperatures after each update with these gradients of the parameter."""
  tx = recipe.create_optimizer(
    num_epochs=10, steps_per_epoch=100, base=0.5, warmup_epochs=0, epsilon=1e-8
  )
  params = {NAME: learnable_temperature.create(start)}
  state, temperatures = tx.init(params), []
  for gradient in gradients:
    updates, state = tx.update({NAME: jnp.float32(gradient)}, state, params)
    params = {NAME: params[NAME] + updates[NAME]}
    temperatures.append(float(learnable_temperature.temperature_of(params, 0.0)))
  return np.array(temperatures)


def test_the_temperature_stays_in_clips_bounds_and_comes_back():
  down_and_up = steps([-1.0] * 10 + [1.0] * 60)
  assert down_and_up[9] == pytest.approx(0.01, rel=1e-5)
  assert down_and_up.min() > 0.01 - 1e-6
  assert down_and_up[-1] == pytest.approx(1.0, rel=1e-5) and down_and_up.max() < 1 + 1e-5


def test_weight_decay_leaves_the_temperature():
  """Its gradient is 0, so only decay could move it."""
  np.testing.assert_allclose(steps([0.0] * 20, start=0.05), 0.05, rtol=1e-6)
