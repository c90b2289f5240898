"""How a training step mines relations: the method's two searches, with the run's settings.

Both are plugs of `train_step`: reference experiments and `strict_mining` replace them by functions
of the same signature.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from dgia_jax.method import bank_search, memory_bank
from dgia_jax.method.global_association import Neighbours, num_candidates, select_neighbours
from dgia_jax.method.local_association import local_relations


class Batch(TypedDict):
  """A global batch of training pairs. It holds no identity, so no search can read one from it."""

  image: UInt8[Array | np.ndarray, "B H W 3"]
  tokens: Int[Array | np.ndarray, "B L"]
  index: Int[Array | np.ndarray, " B"]  # bank row of each pair, -1 in padded rows
  image_index: Int[Array | np.ndarray, " B"]  # number of the image that each pair shows
  mask: Bool[Array | np.ndarray, " B"]  # False in padded rows, which change nothing


class FeaturePair(NamedTuple):
  """Features of the same pairs in both modalities, unnormalised."""

  image: Float[Array | np.ndarray, "B D"]
  text: Float[Array | np.ndarray, "B D"]


MineLocal = Callable[[FeaturePair, Batch], jax.Array]  # -> (B, B) bool
MineGlobal = Callable[[memory_bank.Bank, FeaturePair, Batch], Neighbours]


def searches_bank(global_weight: float, exchange_prob: float) -> bool:
  """Whether a step mines neighbours: for the global loss, or to exchange their captions."""
  return bool(global_weight or exchange_prob)


def mine_local(features: FeaturePair, batch: Batch, *, settings: Any) -> Bool[Array, "B B"]:
  """Relations inside the batch (section 3.2), by `config.local_association`."""
  return local_relations(
    features.image, features.text, settings.threshold, settings.modality, batch["mask"]
  )


def candidates_per_anchor(settings: Any, same_image_rows: int) -> int:
  """Best bank rows to look at for every anchor, by `config.global_association`.

  Args:
    settings: `config.global_association`.
    same_image_rows: the largest number of other captions that an image has.
  """
  return num_candidates(settings.k, same_image_rows if settings.exclude_same_image else 0)


def mine_global(
  bank: memory_bank.Bank,
  features: FeaturePair,
  batch: Batch,
  *,
  settings: Any,
  mesh: jax.sharding.Mesh,
  block_rows: int,
  same_image_rows: int,
  threshold: float | Float[Array, ""] | None = None,
) -> Neighbours:
  """Bank rows mined for every pair (section 3.3), by `config.global_association`.

  Args:
    bank: the memory bank.
    features: the clean view's features of the batch.
    batch: see `Batch`.
    settings: `config.global_association`.
    mesh: the mesh.
    block_rows: `config.bank.block_rows`.
    same_image_rows: as `candidates_per_anchor`.
    threshold: theta, where it is not the configured one.
  """
  features = jax.lax.stop_gradient(features)
  scores, rows = bank_search.search(
    bank,
    features,
    candidates_per_anchor(settings, same_image_rows),
    mesh=mesh,
    anchor=settings.anchor,
    block_rows=block_rows,
  )
  image_ids = None
  if settings.exclude_same_image:
    image_ids = (memory_bank.gather(bank.group, rows, mesh=mesh), batch["image_index"])
  return select_neighbours(
    scores,
    rows,
    batch["index"],
    k=settings.k,
    threshold=settings.threshold if threshold is None else threshold,
    exclude=settings.exclude,
    image_ids=image_ids,
  )
