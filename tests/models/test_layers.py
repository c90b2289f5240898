"""The shared transformer parts against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax.models import layers


def make_block(rngs, causal=False):
  return layers.Block(64, 2, depth=3, causal=causal, dtype=jnp.float32, rngs=rngs)


def test_quick_gelu():
  x = np.linspace(-6, 6, 25, dtype=np.float32)
  np.testing.assert_allclose(
    layers.quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), rtol=1e-5, atol=1e-7
  )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_its_formula(causal):
  attention = make_block(nnx.Rngs(0), causal).attention
  x = np.asarray(jax.random.normal(jax.random.key(1), (2, 7, 64)), np.float64)
  qkv = np.einsum("bsc,cpae->pbsae", x, attention.qkv.kernel[...]) + np.asarray(
    attention.qkv.bias[...]
  ).reshape(3, 1, 1, 2, 32)
  scores = np.einsum("bqae,bkae->baqk", qkv[0], qkv[1]) / np.sqrt(32)
  if causal:
    scores = np.where(np.tril(np.ones((7, 7), bool)), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum("baqk,bkae->bqae", weights, qkv[2])
  expected = np.einsum("bqae,aec->bqc", mixed, attention.out.kernel[...])
  np.testing.assert_allclose(attention(jnp.asarray(x, jnp.float32)), expected, atol=2e-6)


@pytest.mark.parametrize("remat", [False, True])
def test_stacked_blocks_run_in_order(remat):
  stacked = layers.stack_blocks(lambda rngs: make_block(rngs), 3, nnx.Rngs(0))
  graphdef, state = nnx.split(stacked, nnx.Param)
  x = jax.random.normal(jax.random.key(1), (2, 5, 64))
  expected = x
  for layer in range(3):
    expected = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=layer: leaf[i], state))(expected)
  actual = layers.run_blocks(stacked, x, remat=remat)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_takes_statistics_in_float32():
  norm = layers.layer_norm(256, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  # In bfloat16 the mean of these would be off by more than their spread.
  x = 100 + jnp.arange(256, dtype=jnp.bfloat16) / 256
  exact = np.asarray(x, np.float32)
  exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
  np.testing.assert_allclose(np.asarray(norm(x[None])[0], np.float32), exact, atol=0.02)
