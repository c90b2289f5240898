"""The streams of random numbers of a training step, by the number that is folded into its key.

Every stream has a number of its own, so that switching one on leaves the others as they are.
"""

import jax

DISTORTED_IMAGE, DISTORTED_TEXT = 0, 1
CLEAN_VIEW = 2
CAPTION_EXCHANGE = 3
KEPT_PATCHES = 4


def of_step(seed: int, step: int | jax.Array) -> jax.Array:
  """The random key of a step, counted from 0."""
  return jax.random.fold_in(jax.random.key(seed), step)


def stream(key: jax.Array, number: int) -> jax.Array:
  """The key of one stream of a step."""
  return jax.random.fold_in(key, number)
