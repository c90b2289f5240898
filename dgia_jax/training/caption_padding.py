"""How little padding the text tower of a run may encode, see `models.caption_groups`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dgia_jax import sharding
from dgia_jax.data import batches
from dgia_jax.models import caption_groups
from dgia_jax.models.caption_groups import CaptionGroup
from dgia_jax.training.setup import TrainingSetup


def choose_groups(
  setup: TrainingSetup, tokens_NxL: Int[np.ndarray, "N L"]
) -> tuple[CaptionGroup, ...]:
  """Chooses the groups of captions for a whole run, whose batches are known in advance.

  Args:
    setup: the training setup.
    tokens_NxL: the encoded training captions.

  Returns:
    The groups; () if all captions are best encoded at once, at full length.
  """
  config, context_length = setup.config, tokens_NxL.shape[1]
  # SigLIP's text tower attends to padding.
  if config.model.caption_groups == 1 or setup.size.family.is_siglip:
    return ()
  longest_R = batches.longest_at_each_rank(
    _lengths(tokens_NxL),
    batch_size=config.batch_size,
    seed=config.seed,
    num_epochs=config.num_epochs,
    shards=sharding.batch_shards(setup.mesh),
    parts=config.gradient_accumulation,
  )
  groups = caption_groups.choose(longest_R, config.model.caption_groups, context_length)
  return () if groups == (CaptionGroup(len(longest_R), context_length),) else groups


def describe(groups: Sequence[CaptionGroup], tokens_NxL: Int[np.ndarray, "N L"]) -> str:
  """One line about real tokens and computed ones."""
  computed = sum(group.rows * group.length for group in groups) / sum(rows for rows, _ in groups)
  lengths = ", ".join(str(group.length) for group in groups)
  return (
    f"captions have {np.mean(_lengths(tokens_NxL)):.1f} of {tokens_NxL.shape[1]} tokens on average;"
    f" in groups of up to {lengths} tokens, {computed:.1f} are computed"
  )


def _lengths(tokens_NxL: Int[np.ndarray, "N L"]) -> Int[np.ndarray, " N"]:
  """Tokens of every caption up to its end token, which has the highest id."""
  return np.argmax(tokens_NxL, axis=1) + 1
