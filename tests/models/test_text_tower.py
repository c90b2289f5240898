"""The text tower is causal and ignores everything after the end token."""

import jax
import jax.numpy as jnp
import numpy as np

from dgia_jax.models import transformer
from dgia_jax.models.backend import DEFAULT
from tests.helpers import model_b


def test_no_position_depends_on_a_later_one():
  tower = model_b.create().text
  blocks = transformer.Blocks(tower.blocks, tower.last_block)
  x_BxTxU = jax.random.normal(jax.random.key(0), (1, 9, 128))

  def position_4(x):
    return jnp.sum(transformer.run_blocks(blocks, x, DEFAULT, positions=4) ** 2)

  gradient_T = jnp.abs(jax.grad(position_4)(x_BxTxU)).sum(axis=(0, 2))
  assert bool((gradient_T[:5] > 0).all())
  np.testing.assert_array_equal(gradient_T[5:], 0)


def test_image_blocks_are_not_causal():
  tower = model_b.create().image
  blocks = transformer.Blocks(tower.blocks, tower.last_block)
  x_BxTxU = jax.random.normal(jax.random.key(0), (1, 9, 128))

  def first_position(x):
    return jnp.sum(transformer.run_blocks(blocks, x, DEFAULT, positions=0) ** 2)

  assert bool((jnp.abs(jax.grad(first_position)(x_BxTxU)).sum(axis=(0, 2)) > 0).all())


def test_tokens_after_the_end_token_do_not_change_the_feature():
  model = model_b.create()
  _, tokens = model_b.inputs(batch=4)
  tokens = np.array(tokens)
  tokens[:, 40:] = 0
  tokens[:, 39] = 999
  other = tokens.copy()
  other[:, 40:] = np.random.default_rng(1).integers(0, 998, (4, 37))
  feature = model.encode_text(jnp.asarray(tokens))
  np.testing.assert_array_equal(feature, model.encode_text(jnp.asarray(other)))
  other[:, 38] = 5
  assert not np.array_equal(feature, model.encode_text(jnp.asarray(other)))


def test_cutting_a_batch_after_its_end_tokens_does_not_change_the_features():
  model = model_b.create()
  _, tokens = model_b.inputs(batch=4)
  tokens = np.array(tokens)
  tokens[:, 20:] = 0
  tokens[:, 19] = 999
  full, cut = (model.encode_text(jnp.asarray(tokens[:, :length])) for length in (77, 32))
  np.testing.assert_allclose(cut, full, rtol=0, atol=1e-5 * float(jnp.abs(full).max()))
