"""A moving average of the trained weights, evaluated beside them. Not in the paper."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


def update(average: Any, trained: Any, decay: float, step: Int[Array, ""]) -> Any:
  """The average after one more step; None stays None, which switches it off.

  Args:
    average: a tree like `trained`, or None.
    trained: the trained parameters after the step.
    decay: weight of the old average; smaller in the first steps, (1 + step) / (10 + step), so that
      the average soon forgets where training started.
    step: steps done before this one.
  """
  if average is None:
    return None
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return optax.incremental_update(trained, average, 1 - decay)
