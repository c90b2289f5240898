"""ORACLES use true identities. They are upper bounds for evaluation, not methods.

A model that is reported as weakly supervised must not be trained with them. `dgia_jax` does not
import this module; `dgia_jax.training.train.train` accepts functions that mine relations or change
batches, and the oracles are such functions.
"""

from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from dgia_jax.data.pairs import PairTable
from dgia_jax.method import memory_bank
from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.memory_bank import Bank
from dgia_jax.method.mining import Batch, FeaturePair, MineGlobal, MineLocal
from dgia_jax.training.train import TransformBatch


class TrueRelations(TypedDict):
  """Keyword arguments of `dgia_jax.training.train.train`."""

  mine_local: MineLocal
  mine_global: MineGlobal


def true_relations(pairs: PairTable, k: int, seed: int, mesh: jax.sharding.Mesh) -> TrueRelations:
  """True instead of mined relations, for the local, global and consistency losses.

  Args:
    pairs: the training pairs; their identities are READ here.
    k: number of neighbours per anchor, chosen at random among the person's other images.
    seed: of that choice.
    mesh: of the run.
  """
  person_N = jnp.asarray(pairs.person_of_pair_N)
  positives_NxK = jnp.asarray(_same_person_rows(pairs, k, np.random.default_rng([seed, 1])))

  def mine_local(features: FeaturePair, batch: Batch) -> Bool[Array, "B B"]:
    del features
    person_B = jnp.where(
      batch["mask"], person_N[batch["index"]], -1 - jnp.arange(len(batch["mask"]))
    )
    return person_B[:, None] == person_B[None, :]

  def mine_global(bank: Bank, features: FeaturePair, batch: Batch) -> Neighbours:
    rows_BxK = positives_NxK[batch["index"]]
    mined, norms = memory_bank.gather((bank.image, bank.image_inverse_norm), rows_BxK, mesh=mesh)
    anchors = features.image * memory_bank.inverse_norm(features.image)[:, None]
    scores_BxK = jnp.einsum("bd,bkd->bk", anchors, mined) * norms
    return Neighbours(rows_BxK, scores_BxK, (rows_BxK >= 0) & (norms > 0))

  return {"mine_local": mine_local, "mine_global": mine_global}


def true_captions(
  pairs: PairTable, tokens_NxL: Int[np.ndarray, "N L"], seed: int
) -> TransformBatch:
  """Pairs every image with a random caption of its person, drawn again in every step.

  Args:
    pairs: the training pairs; their identities are READ here.
    tokens_NxL: encoded training captions.
    seed: of the draws.
  """
  _, person_N = np.unique(pairs.person_of_pair_N, return_inverse=True)
  by_person = np.argsort(person_N, kind="stable")
  start_P = np.searchsorted(person_N[by_person], np.arange(person_N.max() + 2))

  def transform_batch(batch: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    real_B = batch["mask"]
    person_B = person_N[batch["index"][real_B]]
    draw = np.random.default_rng([seed, 2, step]).random(len(person_B))
    first, count = start_P[person_B], start_P[person_B + 1] - start_P[person_B]
    tokens = batch["tokens"].copy()
    tokens[real_B] = tokens_NxL[by_person[first + (draw * count).astype(int)]]
    return batch | {"tokens": tokens}

  return transform_batch


def _same_person_rows(pairs: PairTable, k: int, rng: np.random.Generator) -> Int[np.ndarray, "N K"]:
  """Rows of the same person's other images, -1 if the person has fewer than k."""
  positives_NxK = np.full((pairs.num_pairs, k), -1, np.int32)
  order = np.argsort(pairs.person_of_pair_N, kind="stable")
  groups = np.split(order, np.flatnonzero(np.diff(pairs.person_of_pair_N[order])) + 1)
  for group in groups:
    for row in group:
      others = group[pairs.image_of_pair_N[group] != pairs.image_of_pair_N[row]]
      chosen = rng.permutation(others)[:k]
      positives_NxK[row, : len(chosen)] = chosen
  return positives_NxK
