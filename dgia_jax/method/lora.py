"""LoRA: kernels of the blocks stay frozen, and low-rank products added to them are trained.

W + (alpha / rank) A B, Hu et al. 2022 (arXiv 2106.09685); not in the paper. A starts random and B
at 0, so training starts from W. The pairs form a tree like the towers, whose `kernel` entries are
replaced by `a` and `b`. They are merged into the kernels before the towers run: the model knows
nothing of them, and a converted or indexed model costs what it would cost without.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgia_jax.models.transformer import BLOCKS, LAST_BLOCK

Kernel = Float[Array | np.ndarray, "..."]
NAME = "lora"  # of the pairs in the tree of parameters


class Matrix(NamedTuple):
  """A kernel of a block: the layer it belongs to, and how many of its axes are inputs."""

  module: str
  layer: str
  input_axes: int


MATRICES = {
  "qkv": Matrix("attention", "qkv", 1),  # queries, keys and values share one A
  "out": Matrix("attention", "out", 2),
  "up": Matrix("mlp", "up", 1),
  "down": Matrix("mlp", "down", 1),
}
_STACK_AXES = {BLOCKS: 1, LAST_BLOCK: 0}


def create(
  key: Array, towers: Mapping[str, Any], rank: int, matrices: Sequence[str]
) -> dict[str, Any]:
  """Creates pairs for every block of both towers.

  Args:
    key: a random key.
    towers: the parameters of both towers.
    rank: columns of A and rows of B.
    matrices: keys of `MATRICES`.
  """
  pairs: dict[str, Any] = {}
  for tower, stack in _stacks(towers):
    stack_axes, blocks = _STACK_AXES[stack], {}
    for matrix in (MATRICES[name] for name in matrices):
      key, own_key = jax.random.split(key)
      kernel = towers[tower][stack][matrix.module][matrix.layer]["kernel"]
      first_output = stack_axes + matrix.input_axes
      inputs = kernel.shape[stack_axes:first_output]
      a = jax.random.normal(own_key, (*kernel.shape[:first_output], rank), jnp.float32)
      b = jnp.zeros((*kernel.shape[:stack_axes], rank, *kernel.shape[first_output:]), jnp.float32)
      pair = {"a": a * math.prod(inputs) ** -0.5, "b": b}
      blocks.setdefault(matrix.module, {})[matrix.layer] = pair
    pairs.setdefault(tower, {})[stack] = blocks
  return pairs


def merge(towers: Mapping[str, Any], pairs: Mapping[str, Any], alpha: float) -> dict[str, Any]:
  """Both towers with the pairs' products added to their kernels.

  Args:
    towers: the parameters of both towers.
    pairs: as `create` returns them.
    alpha: the product is scaled by alpha / rank.
  """
  return {tower: _merged(towers[tower], pairs[tower], alpha) for tower in towers}


def _merged(tower: Mapping[str, Any], pairs: Mapping[str, Any], alpha: float) -> dict[str, Any]:
  merged = dict(tower)
  for stack, stack_pairs in pairs.items():
    blocks = dict(tower[stack])
    for module, layers in stack_pairs.items():
      blocks[module] = dict(blocks[module])
      for layer, pair in layers.items():
        own = blocks[module][layer]
        kernel = _adapted(own["kernel"], **pair, alpha=alpha, stack_axes=_STACK_AXES[stack])
        blocks[module][layer] = {**own, "kernel": kernel}
    merged[stack] = blocks
  return merged


def _adapted(
  kernel: Kernel,
  a: Kernel,
  b: Kernel,
  *,
  alpha: float,
  stack_axes: int,
) -> Float[Array, "..."]:
  """W + (alpha / rank) A B, of every layer of a stack."""
  layers = tuple(range(stack_axes))
  product = jax.lax.dot_general(
    a,
    b,
    (((a.ndim - 1,), (stack_axes,)), (layers, layers)),
    precision=jax.lax.Precision.HIGHEST,
  )
  return kernel + alpha / a.shape[-1] * product


def _stacks(towers: Mapping[str, Any]) -> list[tuple[str, str]]:
  """(tower, name) of each group of blocks: the stacked ones and the last one."""
  return [
    (tower, stack) for tower in sorted(towers) for stack in _STACK_AXES if stack in towers[tower]
  ]
