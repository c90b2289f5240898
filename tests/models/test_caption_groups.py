"""Captions in groups of similar length have the features that they have at full length."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax import sharding
from dgia_jax.models import caption_groups
from dgia_jax.models.caption_groups import CaptionGroup
from tests.helpers import model_b


def fewest_tokens(lengths, num_groups):
  """By trying every way to cut the ranks into groups."""
  ends = range(1, len(lengths))
  ways = itertools.chain.from_iterable(
    itertools.combinations(ends, count) for count in range(num_groups)
  )
  cost = lambda cuts: sum(
    (end - start) * lengths[end - 1] for start, end in itertools.pairwise([0, *cuts, len(lengths)])
  )
  return min(map(cost, ways))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_groups", [1, 2, 3, 9])
def test_the_groups_have_the_fewest_tokens(seed, num_groups):
  random = np.random.default_rng(seed)
  longest = np.sort(random.integers(0, 78, 8))
  groups = caption_groups.choose(longest, num_groups, 77)
  rounded = np.minimum(-(-longest // 8) * 8, 77)
  assert 1 <= len(groups) <= num_groups and sum(group.rows for group in groups) == 8
  assert all(one.length < other.length for one, other in itertools.pairwise(groups))
  limits = np.repeat([group.length for group in groups], [group.rows for group in groups])
  assert np.all(longest <= limits)
  assert sum(limits) == fewest_tokens(rounded.tolist(), num_groups)


def test_captions_of_one_length_are_one_group():
  assert caption_groups.choose(np.full(6, 30), 4, 77) == (CaptionGroup(6, 32),)


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
  groups = caption_groups.choose(np.sort(lengths), 3, 77)
  assert len(groups) == 3

  def loss(params, tokens, grouped):
    encode = nnx.merge(graphdef, params).encode_text
    features = (
      caption_groups.encode_in_groups(encode, tokens, groups, 1) if grouped else encode(tokens)
    )
    weights = jax.random.normal(jax.random.key(0), features.shape)
    return jnp.sum(features * weights), features

  run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
  expected, actual = run(params, tokens, False), run(params, tokens, True)
  for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * float(jnp.abs(other).max()) + 1e-9)


def test_a_caption_that_does_not_fit_has_no_feature():
  encode = lambda tokens: jnp.ones((len(tokens), 2))
  tokens = jnp.asarray(tokens_of([20, 5, 6, 7]))
  groups = (CaptionGroup(2, 8), CaptionGroup(2, 16))
  features = caption_groups.encode_in_groups(encode, tokens, groups, 1)
  np.testing.assert_array_equal(np.isnan(features).any(axis=1), [True, False, False, False])


def test_other_numbers_of_captions_are_refused():
  with pytest.raises(ValueError, match="5 captions"):
    caption_groups.encode_in_groups(jnp.ones, jnp.ones((5, 77), int), (CaptionGroup(2, 8),), 2)


def test_no_caption_leaves_its_device():
  mesh = sharding.create_mesh()
  lengths = np.random.default_rng(0).integers(2, 33, 32)
  groups = (CaptionGroup(2, 16), CaptionGroup(2, 32))
  embedding = jax.random.normal(jax.random.key(0), (1000, 4)).at[0].set(0)
  encode = lambda tokens: jnp.sum(embedding[tokens], axis=1)
  compiled = (
    jax.jit(
      lambda tokens: caption_groups.encode_in_groups(encode, tokens, groups, 8),
      in_shardings=sharding.batch(mesh),
      out_shardings=sharding.batch(mesh),
    )
    .lower(tokens_of(lengths, 32))
    .compile()
  )
  for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
    assert collective not in compiled.as_text()
  tokens = jax.device_put(tokens_of(lengths, 32), sharding.batch(mesh))
  features = np.asarray(compiled(tokens))
  rank = np.argsort(np.argsort(lengths.reshape(8, 4), axis=1, kind="stable"), axis=1)
  fits = lengths <= np.where(rank < 2, 16, 32).reshape(-1)
  assert 0 < fits.sum() < 32
  np.testing.assert_array_equal(np.isnan(features).any(axis=1), ~fits)
  np.testing.assert_allclose(features[fits], np.asarray(encode(tokens))[fits], rtol=1e-5)
