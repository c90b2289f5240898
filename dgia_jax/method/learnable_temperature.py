"""The temperature as a parameter, as in CLIP: the logarithm of its inverse. Not in the paper.

All four losses divide their cosines by the one temperature, so all four train it. Weight decay
does not touch it.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

NAME = "logit_scale"  # in the tree of parameters, and in CLIP's checkpoints
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1.0  # CLIP's bounds: scales of 100 and 1


def create(temperature: float) -> Float[Array, ""]:
  """The parameter whose temperature this is."""
  return jnp.float32(-math.log(temperature))


def temperature_of(params: Mapping[str, Any], fixed: float) -> float | Float[Array, ""]:
  """The temperature among the parameters, or `fixed` if it is none of them."""
  return jnp.exp(-params[NAME]) if NAME in params else fixed


def stay_in_bounds() -> optax.GradientTransformation:
  """Cuts updates that would lead the temperature out of its bounds; the last of a chain.

  CLIP clamps the parameter itself. Clamping it where it is used would leave it without a gradient
  beyond the bound, from where it could not come back.
  """
  low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)

  def cut(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    if not isinstance(updates, Mapping) or NAME not in updates:
      return updates
    scale = params[NAME]
    return {**updates, NAME: jnp.clip(scale + updates[NAME], low, high) - scale}

  return optax.stateless(cut)
