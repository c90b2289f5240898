"""Which parameters are trained: all of them, or what freezing and LoRA leave. Not in the paper.

The tree of parameters always holds every parameter, so checkpoints have one form whatever is
frozen. `select` cuts the trained ones out of it; gradients, Adam's averages and the average of the
weights exist for these alone. `merge` puts them back. Both are the identity when all are trained.

Frozen blocks are always the first ones of a tower, and its embeddings freeze with them. Whatever
comes before the first trained block is thus a constant, and has no backward pass
(`transformer.run_blocks`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dgia_jax.method import learnable_temperature, lora
from dgia_jax.models.transformer import BLOCKS, LAST_BLOCK

Params = Mapping[str, Any]
TOWERS = ("image", "text")
WHOLE_TOWER = -1  # in place of a number of frozen blocks
# Parameters of a tower that come before its blocks.
EMBEDDINGS = (
  "patch_embedding", "patch_bias", "class_embedding", "position_embedding", "token_embedding",
  "norm_pre",
)  # fmt: skip
# Folded into the seed for LoRA's first values. The second step folds in the same number for its own
# draws, which are of other shapes; another number would change the runs that we report.
_LORA_STREAM = 1


def with_additions(
  towers: Params,
  *,
  seed: int,
  lora_rank: int,
  lora_matrices: Sequence[str],
  temperature: float | None,
) -> dict[str, Any]:
  """Every parameter of a run: those of the towers, and LoRA's and the temperature where asked for.

  Args:
    towers: the parameters of the model.
    seed: draws LoRA's first values.
    lora_rank: 0 for none.
    lora_matrices: see `lora.create`.
    temperature: the first value of a learnable temperature; None for a constant one.
  """
  params = dict(towers)
  if lora_rank:
    key = jax.random.fold_in(jax.random.key(seed), _LORA_STREAM)
    params[lora.NAME] = lora.create(key, towers, lora_rank, lora_matrices)
  if temperature is not None:
    params[learnable_temperature.NAME] = learnable_temperature.create(temperature)
  return params


def num_stacked(tower: Params) -> int:
  """The number of a tower's blocks whose parameters are stacked along a leading axis."""
  leaves = jax.tree.leaves(tower.get(BLOCKS))
  return leaves[0].shape[0] if leaves else 0


def select(params: Params, frozen_blocks: Mapping[str, int]) -> dict[str, Any]:
  """The parameters that are trained: a tree like `params`, without the frozen ones.

  With LoRA, these are its pairs in the blocks that are not frozen; the towers' own weights are all
  frozen. A learnable temperature is always trained. Of stacked blocks the trained rows remain.

  Args:
    params: every parameter.
    frozen_blocks: by tower, the number of its first blocks to freeze; 0 freezes nothing,
      `WHOLE_TOWER` everything.
  """
  if not any(frozen_blocks.values()) and lora.NAME not in params:
    return dict(params)
  name = learnable_temperature.NAME
  trained = {name: params[name]} if name in params else {}
  if lora.NAME in params:
    return trained | {lora.NAME: _trained_towers(params[lora.NAME], frozen_blocks)}
  return trained | _trained_towers(params, frozen_blocks)


def merge(params: Params, trained: Params) -> dict[str, Any]:
  """`params` with new values of the trained ones: the reverse of `select`.

  Args:
    params: every parameter.
    trained: a tree from `select`.
  """
  merged = dict(params)
  for name, part in trained.items():
    whole = params[name]
    if isinstance(part, Mapping):
      merged[name] = merge(whole, part)
    elif part.shape == whole.shape:
      merged[name] = part
    else:
      num_frozen = whole.shape[0] - part.shape[0]
      merged[name] = jnp.concatenate([whole[:num_frozen], part])
  return merged


def towers(params: Params, lora_alpha: float) -> dict[str, Any]:
  """The parameters as the model takes them: both towers, with LoRA's pairs merged into them.

  Args:
    params: every parameter.
    lora_alpha: see `lora.merge`.
  """
  both = {tower: params[tower] for tower in TOWERS}
  return lora.merge(both, params[lora.NAME], lora_alpha) if lora.NAME in params else both


def _trained_towers(towers: Params, frozen_blocks: Mapping[str, int]) -> dict[str, Any]:
  trained = {
    tower: _without_first(towers[tower], frozen_blocks[tower])
    for tower in TOWERS
    if frozen_blocks[tower] != WHOLE_TOWER
  }
  return {tower: part for tower, part in trained.items() if part}


def _without_first(tower: Params, num_blocks: int) -> dict[str, Any]:
  """A tower without its first blocks, and without its embeddings if there are any to freeze."""
  if not num_blocks:
    return dict(tower)
  stacked = num_stacked(tower)
  part = {
    name: subtree
    for name, subtree in tower.items()
    if name not in (BLOCKS, LAST_BLOCK) and name not in EMBEDDINGS
  }
  if num_blocks < stacked:
    part[BLOCKS] = jax.tree.map(lambda leaf: leaf[num_blocks:], tower[BLOCKS])
  if num_blocks <= stacked and LAST_BLOCK in tower:
    part[LAST_BLOCK] = tower[LAST_BLOCK]
  return part
