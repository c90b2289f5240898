"""How a training step mines relations: the method's two searches, with the run's settings.

Both are plugs of `train_step`: reference experiments and `strict_mining` replace them by functions
of the same signature. A batch holds no identity, so no plug can read one from it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from dgia_jax.method import memory_bank
from dgia_jax.method.global_association import Neighbours, num_candidates, select_neighbours
from dgia_jax.method.local_association import local_relations

Batch = Mapping[str, jax.Array | np.ndarray]


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
    batch: see `train_step`.
    settings: `config.global_association`.
    mesh: the mesh.
    block_rows: `config.bank.block_rows`.
    same_image_rows: the largest number of other captions that an image has.
    threshold: theta, where it is not the configured one.
  """
  features = jax.lax.stop_gradient(features)
  scores, rows = memory_bank.search(
    bank,
    features,
    num_candidates(settings.k, same_image_rows if settings.exclude_same_image else 0),
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
