"""What is trained, what is frozen, and that both go together again."""

import jax
import numpy as np
import pytest
from flax import nnx

from dgia_jax.method import learnable_temperature, lora, trainable
from dgia_jax.models import dual_encoder
from tests.helpers.trees import by_name

NOTHING = {"image": 0, "text": 0}
SIZE = dual_encoder.Size(
  dual_encoder.TowerSize(16, 4, 2), dual_encoder.TowerSize(16, 3, 2), feature_width=8, patch_size=8
)
# What follows the blocks. A new name must be listed here, or in `trainable.EMBEDDINGS`.
HEADS = ("norm_post", "norm_final", "pooling", "projection", "projection_bias")


@pytest.fixture(scope="module")
def towers():
  model = dual_encoder.DualEncoder(
    SIZE, image_size=(16, 8), context_length=6, vocab_size=20, rngs=nnx.Rngs(0)
  )
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_every_parameter_is_an_embedding_or_of_a_block_or_of_a_head(towers):
  blocks = ("blocks", "last_block")
  for name in by_name(towers):
    part = name.split("/")[1]
    assert (part in trainable.EMBEDDINGS) + (part in blocks) + (part in HEADS) == 1, name


def test_without_settings_every_parameter_is_trained(towers):
  trained = trainable.select(towers, NOTHING)
  merged = trainable.merge(towers, trained)
  for name, leaf in by_name(towers).items():
    assert by_name(trained)[name] is leaf and by_name(merged)[name] is leaf


@pytest.mark.parametrize("frozen", [1, 2, 3, 4])
def test_the_first_blocks_and_the_embeddings_freeze(towers, frozen):
  """The image tower has three stacked blocks and a last one."""
  trained = by_name(trainable.select(towers, {"image": frozen, "text": 0}))
  for name, leaf in by_name(towers).items():
    part = name.split("/")[1]
    if name.startswith("text/") or part in HEADS or (part == "last_block" and frozen < 4):
      assert trained.pop(name) is leaf
    elif part == "blocks" and frozen < 3:
      np.testing.assert_array_equal(trained.pop(name), leaf[frozen:])
  assert not trained


def test_a_whole_tower_freezes_with_its_projection(towers):
  trained = trainable.select(towers, {"image": trainable.WHOLE_TOWER, "text": 0})
  assert set(trained) == {"text"}
  assert by_name(trained).keys() == by_name({"text": towers["text"]}).keys()


@pytest.mark.parametrize("frozen", [0, 2, 4, trainable.WHOLE_TOWER])
def test_new_values_of_the_trained_return_to_their_places(towers, frozen):
  trained = trainable.select(towers, {"image": frozen, "text": 1})
  changed = by_name(trainable.merge(towers, jax.tree.map(lambda leaf: leaf + 1, trained)))
  rows = {name: leaf.shape[0] if leaf.ndim else 0 for name, leaf in by_name(trained).items()}
  for name, leaf in by_name(towers).items():
    expected = np.array(leaf)
    if name in rows:
      expected[len(leaf) - rows[name] :] += 1
    np.testing.assert_array_equal(changed[name], expected, err_msg=name)


def additions(towers, **settings):
  off = {"seed": 0, "lora_rank": 0, "lora_matrices": ("qkv",), "temperature": None}
  return trainable.with_additions(towers, **off | settings)


def test_nothing_is_added_by_default(towers):
  assert additions(towers) == towers


def test_with_lora_only_its_pairs_and_the_temperature_are_trained(towers):
  params = additions(towers, lora_rank=2, temperature=0.02)
  trained = trainable.select(params, {"image": 3, "text": 0})
  assert set(trained) == {lora.NAME, learnable_temperature.NAME}
  pairs = trained[lora.NAME]
  assert set(pairs["image"]) == {"last_block"} and set(pairs["text"]) == {"blocks", "last_block"}
  merged = trainable.merge(params, trained)
  for name, leaf in by_name(params).items():
    np.testing.assert_array_equal(by_name(merged)[name], leaf)


def test_the_model_gets_two_towers(towers):
  params = additions(towers, lora_rank=2, temperature=0.02)
  assert set(trainable.towers(params, 16.0)) == {"image", "text"}
  assert trainable.towers(towers, 16.0) == towers


def test_lora_starts_differently_for_another_seed(towers):
  pairs = [by_name(additions(towers, lora_rank=2, seed=s)[lora.NAME]) for s in (0, 0, 1)]
  name = "image/blocks/attention/qkv/a"
  np.testing.assert_array_equal(pairs[0][name], pairs[1][name])
  assert not np.array_equal(pairs[0][name], pairs[2][name])
