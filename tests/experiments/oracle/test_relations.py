"""Oracles give true relations and captions of the same person."""

import jax.numpy as jnp
import numpy as np

from dgia_jax import sharding
from dgia_jax.method.mining import FeaturePair
from experiments.oracle import relations
from tests.helpers import tiny_run


def test_local_relations_are_pairs_of_one_person_without_padding():
  pairs = tiny_run.splits()["train"]
  mesh = sharding.create_mesh(data=-1, fsdp=1, tensor=1)
  oracle = relations.true_relations(pairs, 2, seed=0, mesh=mesh)
  index = np.array([0, 1, pairs.num_pairs - 1, 0, 0, 0, 0, 0], np.int32)
  batch = {"index": index, "mask": np.array([True] * 3 + [False] * 5)}
  features = FeaturePair(jnp.ones((8, 4)), jnp.ones((8, 4)))
  related = np.asarray(oracle["mine_local"](features, batch))
  persons = pairs.person_of_pair_N[index[:3]]
  np.testing.assert_array_equal(related[:3, :3], persons[:, None] == persons[None])
  np.testing.assert_array_equal(related[3:], np.eye(8, dtype=bool)[3:])


def test_global_neighbours_are_other_images_of_the_person():
  pairs = tiny_run.splits()["train"]
  rows = relations._same_person_rows(pairs, 2, np.random.default_rng(0))
  for pair, row in enumerate(rows):
    row = row[row >= 0]
    assert len(row) > 0
    assert (pairs.person_of_pair_N[row] == pairs.person_of_pair_N[pair]).all()
    assert (pairs.image_of_pair_N[row] != pairs.image_of_pair_N[pair]).all()


def test_captions_are_swapped_within_each_person():
  pairs = tiny_run.splits()["train"]
  tokens = np.repeat(np.arange(pairs.num_pairs, dtype=np.int32)[:, None], 3, axis=1)
  swap = relations.true_captions(pairs, tokens, seed=0)
  index = np.arange(8, dtype=np.int32)
  batch = {"index": index, "mask": index < 6, "tokens": tokens[:8]}
  swapped = swap(batch, 1)["tokens"]
  persons = pairs.person_of_pair_N
  np.testing.assert_array_equal(persons[swapped[:6, 0]], persons[:6])
  np.testing.assert_array_equal(swapped[6:], tokens[6:8])
  assert (swap(batch, 2)["tokens"] != swapped).any() or (swap(batch, 3)["tokens"] != swapped).any()
