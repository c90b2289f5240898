"""Packed captions have the features that they have one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax import sharding
from dgia_jax.models import caption_packing
from dgia_jax.models.caption_packing import Packing, Slot
from tests.helpers import model_b


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_captions", [1, 7, 64])
def test_slots_hold_the_captions_and_do_not_overlap(seed, num_captions):
  longest = np.sort(np.random.default_rng(seed).integers(3, 90, num_captions))
  packing = caption_packing.choose(longest, 77)
  assert packing.row_length % 8 == 0 and packing.row_length <= 128
  taken = np.zeros((packing.num_rows, packing.row_length), int)
  for slot, length in zip(packing.slots, np.minimum(longest, 77), strict=True):
    assert slot.length == length and slot.start + length <= packing.row_length
    taken[slot.row, slot.start : slot.start + length] += 1
  assert taken.max() == 1 and taken.any(axis=1).all()
  assert packing.tokens_per_caption == taken.size / num_captions
  # First fit needs at most 1.7 times the rows of the best packing, and these are far from it.
  assert taken.mean() > (0.85 if num_captions == 64 else 0.6)


def test_the_row_length_with_the_fewest_tokens_is_taken():
  # Rows of 64 hold two captions each, rows of 96 and 128 leave room that no caption fits in.
  packing = caption_packing.choose(np.full(6, 32), 77)
  assert packing.tokens_per_caption == 32


def test_captions_longer_than_a_row_get_longer_rows():
  assert caption_packing.choose(np.array([5, 250]), 256).row_length == 256


def tokens_of(lengths, context_length=77):
  random = np.random.default_rng(0)
  tokens = np.zeros((len(lengths), context_length), np.int32)
  for row, length in zip(tokens, lengths, strict=True):
    row[:length] = random.integers(1, 998, length)
    row[length - 1] = 999
  return tokens


@pytest.mark.integration
@pytest.mark.parametrize("repeats", [1, 2])
def test_features_and_gradients_equal_those_at_full_length(repeats):
  graphdef, params = model_b.reference_model()
  lengths = np.random.default_rng(1).permutation([3, 9, 17, 18, 31, 77, 40, 8])
  tokens = jnp.asarray(np.repeat(tokens_of(lengths), repeats, axis=0))
  packing = caption_packing.choose(np.sort(lengths), 77)
  assert packing.num_rows < len(lengths) / 2

  def loss(params, tokens, packed):
    model = nnx.merge(graphdef, params)
    features = (
      caption_packing.encode_packed(model.text.encode_rows, tokens, packing, 1)
      if packed
      else model.encode_text(tokens)
    )
    weights = jax.random.normal(jax.random.key(0), features.shape)
    return jnp.sum(features * weights), features

  run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
  expected, actual = run(params, tokens, False), run(params, tokens, True)
  for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * float(jnp.abs(other).max()) + 1e-9)


def bag_of_words(rows):
  """Features that are sums of the tokens of each caption up to its end."""
  embedding = jax.random.normal(jax.random.key(0), (1000, 4))
  slots = jnp.take_along_axis(jnp.asarray(rows.caption_PxT), rows.end_PxQ, axis=1)
  place = jnp.arange(rows.tokens_PxT.shape[1])[None, None]
  own = jnp.asarray(rows.caption_PxT)[:, None] == slots[..., None]
  own &= place <= rows.end_PxQ[..., None]
  return jnp.einsum("pqt,ptd->pqd", own.astype(float), embedding[rows.tokens_PxT])


FOUR = Packing((Slot(0, 20, 6), Slot(1, 0, 6), Slot(0, 0, 16), Slot(1, 6, 16)), 2, 32)


def test_a_caption_that_does_not_fit_has_no_feature():
  tokens = jnp.asarray(tokens_of([20, 5, 6, 7]))
  features = caption_packing.encode_packed(bag_of_words, tokens, FOUR, 1)
  np.testing.assert_array_equal(np.isnan(features).any(axis=1), [True, False, False, False])


def test_other_numbers_of_captions_are_refused():
  with pytest.raises(ValueError, match="5 captions"):
    caption_packing.encode_packed(bag_of_words, jnp.ones((5, 77), int), FOUR, 1)


def test_no_caption_leaves_its_device():
  mesh = sharding.create_mesh()
  lengths = np.random.default_rng(0).integers(2, 20, 32)
  compiled = (
    jax.jit(
      lambda tokens: caption_packing.encode_packed(bag_of_words, tokens, FOUR, 8),
      in_shardings=sharding.batch(mesh),
      out_shardings=sharding.batch(mesh),
    )
    .lower(tokens_of(lengths, 32))
    .compile()
  )
  for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
    assert collective not in compiled.as_text()
  tokens = tokens_of(lengths, 32)
  features = np.asarray(compiled(jax.device_put(tokens, sharding.batch(mesh))))
  rank = np.argsort(np.argsort(lengths.reshape(8, 4), axis=1, kind="stable"), axis=1)
  fits = lengths <= np.where(rank < 2, 6, 16).reshape(-1)
  assert 0 < fits.sum() < 32
  np.testing.assert_array_equal(np.isnan(features).any(axis=1), ~fits)
  embedding = np.asarray(jax.random.normal(jax.random.key(0), (1000, 4)))
  expected = np.array(
    [embedding[row[:length]].sum(axis=0) for row, length in zip(tokens, lengths, strict=True)]
  )
  np.testing.assert_allclose(features[fits], expected[fits], rtol=1e-4, atol=1e-5)
