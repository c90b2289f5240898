"""SigLIP's pooling equals its formula in every precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax.models import families
from dgia_jax.models.attention_pooling import AttentionPooling
from dgia_jax.models.backend import DEFAULT, Backend


def create(dtype=jnp.float32, backend=DEFAULT):
  return AttentionPooling(
    32, 4, 48, family=families.SIGLIP, dtype=dtype, backend=backend, rngs=nnx.Rngs(0)
  )


def test_one_query_attends_to_all_tokens():
  pooling = create()
  x_BxTxU = jax.random.normal(jax.random.key(1), (2, 5, 32))
  kernel, bias = pooling.attention.qkv.kernel[...], pooling.attention.qkv.bias[...]
  query_AxF = jnp.einsum("u,uaf->af", pooling.probe[...], kernel[:, 0]) + bias[0]
  key_BxTxAxF = jnp.einsum("btu,uaf->btaf", x_BxTxU, kernel[:, 1])
  value_BxTxAxF = jnp.einsum("btu,uaf->btaf", x_BxTxU, kernel[:, 2])
  scores = jnp.einsum("af,btaf->bat", query_AxF, key_BxTxAxF) / np.sqrt(8)
  mixed_BxAxF = jnp.einsum("bat,btaf->baf", jax.nn.softmax(scores), value_BxTxAxF)
  pooled_BxU = jnp.einsum("baf,afu->bu", mixed_BxAxF, pooling.attention.out.kernel[...])
  hidden = jax.nn.gelu(pooling.mlp.up(pooling.norm(pooled_BxU)), approximate=True)
  expected = pooled_BxU + pooling.mlp.down(hidden)
  np.testing.assert_allclose(pooling(x_BxTxU), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["written_out", "cudnn"])
def test_features_are_float32_in_every_dtype(attention):
  """A single query needs no fused kernel, so it works on every device."""
  pooling = create(jnp.bfloat16, Backend(attention))
  x_BxTxU = jax.random.normal(jax.random.key(1), (2, 5, 32))
  actual = pooling(x_BxTxU.astype(jnp.bfloat16))
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, create()(x_BxTxU), atol=0.03)
