"""ORACLES: what training would gain if identities were known. Evaluation only, never a method.

Nothing here may be used to train a model that is reported as weakly supervised. The package
`dgia_jax` does not import this module; it only offers the two places where relations are mined and
the one where a batch passes on its way to the device, and these oracles are plugged in there.
"""

import jax.numpy as jnp
import numpy as np

from dgia_jax.method import memory_bank
from dgia_jax.method.global_association import Neighbours


def true_relations(pairs, k, seed, mesh):
  """True relations in place of mined ones, for the local, global and consistency losses.

  Args:
    pairs: the training PairTable; its identities are READ here.
    k: neighbours an anchor is given, chosen at random among the person's other images.
    seed: of that choice.
    mesh: the mesh of the run.

  Returns:
    {"mine_local", "mine_global"} for `dgia_jax.training.train.train`.
  """
  person_N = jnp.asarray(pairs.person_of_pair_N)
  mates_NxK = jnp.asarray(_mates(pairs, k, np.random.default_rng([seed, 1])))

  def mine_local(features, batch):
    del features
    person_B = jnp.where(
      batch["mask"], person_N[batch["index"]], -1 - jnp.arange(len(batch["mask"]))
    )
    return person_B[:, None] == person_B[None, :]

  def mine_global(bank, features, batch):
    rows_BxK = mates_NxK[batch["index"]]
    mined, norms = memory_bank.gather((bank.image, bank.image_inverse_norm), rows_BxK, mesh=mesh)
    anchors = features.image * memory_bank.inverse_norm(features.image)[:, None]
    scores_BxK = jnp.einsum("bd,bkd->bk", anchors, mined) * norms
    return Neighbours(rows_BxK, scores_BxK, (rows_BxK >= 0) & (norms > 0))

  return {"mine_local": mine_local, "mine_global": mine_global}


def true_captions(pairs, tokens_NxL, seed):
  """Every image paired with a caption of its person, drawn anew each time it is seen.

  Args:
    pairs: the training PairTable; its identities are READ here.
    tokens_NxL: encoded training captions.
    seed: of the draws.

  Returns:
    {"transform_batch"} for `dgia_jax.training.train.train`.
  """
  _, person_N = np.unique(pairs.person_of_pair_N, return_inverse=True)
  by_person = np.argsort(person_N, kind="stable")
  start_P = np.searchsorted(person_N[by_person], np.arange(person_N.max() + 2))

  def transform_batch(batch, step):
    real_B = batch["mask"]
    person_B = person_N[batch["index"][real_B]]
    draw = np.random.default_rng([seed, 2, step]).random(len(person_B))
    first, count = start_P[person_B], start_P[person_B + 1] - start_P[person_B]
    tokens = batch["tokens"].copy()
    tokens[real_B] = tokens_NxL[by_person[first + (draw * count).astype(int)]]
    return batch | {"tokens": tokens}

  return {"transform_batch": transform_batch}


def _mates(pairs, k, rng):
  """(N, k) rows of the same person's other images, -1 where the person has fewer."""
  mates_NxK = np.full((pairs.num_pairs, k), -1, np.int32)
  order = np.argsort(pairs.person_of_pair_N, kind="stable")
  groups = np.split(order, np.flatnonzero(np.diff(pairs.person_of_pair_N[order])) + 1)
  for group in groups:
    for row in group:
      others = group[pairs.image_of_pair_N[group] != pairs.image_of_pair_N[row]]
      chosen = rng.permutation(others)[:k]
      mates_NxK[row, : len(chosen)] = chosen
  return mates_NxK
