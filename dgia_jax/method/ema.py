"""An average of the weights, evaluated beside them or instead of them. Not in the paper.

Either a moving average over the steps, or one of the initial and the trained weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from dgia_jax.sharding import path_name

_TOKENS = "token_embedding"


def is_on(settings: Any) -> bool:
  """Whether a run keeps an average.

  Args:
    settings: `config.ema`, of which an earlier release may have stored only a part or nothing.
  """
  return any(settings.get(name) for name in ("decay", "initial_share"))


def update(average: Any, trained: Any, decay: float, step: Int[Array, ""]) -> Any:
  """The moving average after one more step; None stays None, which switches it off.

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


def update_with_initial(average: Any, before: Any, after: Any, initial_share: float) -> Any:
  """The average of the initial and the trained weights after one more step.

  As in WiSE-FT (arXiv 2109.01903), with the share s of the initial weights w_0:

    average = s w_0 + (1 - s) w

  It starts as w_0 and moves with w, so w_0 need not be kept. Token embeddings are the trained ones,
  because those of new words have no initial value that means anything.

  Args:
    average: a tree like `before`; before the first step a copy of it.
    before, after: the trained parameters before and after the step.
    initial_share: s, from 0 to 1.
  """

  def move(path: Any, average: Array, before: Array, after: Array) -> Array:
    if path_name(path).endswith(_TOKENS):
      return after
    return average + (1 - initial_share) * (after - before)

  return jax.tree_util.tree_map_with_path(move, average, before, after)
