"""How the captions of a run's batches are packed into rows, see `models.caption_packing`."""

import numpy as np
from jaxtyping import Int

from dgia_jax import sharding
from dgia_jax.data import batches
from dgia_jax.models import caption_packing
from dgia_jax.models.caption_packing import Packing
from dgia_jax.training.setup import TrainingSetup


def is_packable(setup: TrainingSetup) -> bool:
  """Whether the captions of a run may share rows."""
  config = setup.config
  # SigLIP's text tower attends to padding; exchanged captions have lengths that are not known now.
  unpackable = setup.size.family.is_siglip or config.caption_exchange.prob
  return bool(config.model.pack_captions and not unpackable)


def choose_packing(setup: TrainingSetup, tokens_NxL: Int[np.ndarray, "N L"]) -> Packing | None:
  """Chooses the packing of all batches of a run, which are known in advance.

  Args:
    setup: the training setup.
    tokens_NxL: the encoded training captions.

  Returns:
    The packing; None where it would not compute fewer tokens than captions padded one by one.
  """
  config, context_length = setup.config, tokens_NxL.shape[1]
  if not is_packable(setup):
    return None
  longest_R = batches.longest_at_each_rank(
    _lengths(tokens_NxL),
    batch_size=config.batch_size,
    seed=config.seed,
    num_epochs=config.num_epochs,
    shards=sharding.batch_shards(setup.mesh),
    parts=config.gradient_accumulation,
  )
  packing = caption_packing.choose(longest_R, context_length)
  return packing if packing.tokens_per_caption < context_length else None


def describe(packing: Packing, tokens_NxL: Int[np.ndarray, "N L"]) -> str:
  """One line about real tokens and computed ones."""
  return (
    f"captions have {np.mean(_lengths(tokens_NxL)):.1f} of {tokens_NxL.shape[1]} tokens on average;"
    f" packed into rows of {packing.row_length}, {packing.tokens_per_caption:.1f} are computed"
  )


def _lengths(tokens_NxL: Int[np.ndarray, "N L"]) -> Int[np.ndarray, " N"]:
  """Tokens of every caption up to its end token, which has the highest id."""
  return np.argmax(tokens_NxL, axis=1) + 1
