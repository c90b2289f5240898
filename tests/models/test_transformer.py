"""The parts of the transformer agree with their formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax.models import dual_encoder, families, transformer
from dgia_jax.models.backend import DEFAULT, Backend


def make_block(rngs, causal=False):
  return transformer.Block(
    64, 2, depth=3, causal=causal, family=families.CLIP, dtype=jnp.float32, backend=DEFAULT,
    rngs=rngs,
  )  # fmt: skip


def test_quick_gelu():
  x = np.linspace(-6, 6, 25, dtype=np.float32)
  np.testing.assert_allclose(
    transformer.quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), rtol=1e-5, atol=1e-7
  )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_its_formula(causal):
  attention = make_block(nnx.Rngs(0), causal).attention
  x = np.asarray(jax.random.normal(jax.random.key(1), (2, 7, 64)), np.float64)
  qkv = np.einsum("btu,upaf->pbtaf", x, attention.qkv.kernel[...]) + np.asarray(
    attention.qkv.bias[...]
  ).reshape(3, 1, 1, 2, 32)
  scores = np.einsum("bqaf,bkaf->baqk", qkv[0], qkv[1]) / np.sqrt(32)
  if causal:
    scores = np.where(np.tril(np.ones((7, 7), bool)), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum("baqk,bkaf->bqaf", weights, qkv[2])
  expected = np.einsum("bqaf,afu->bqu", mixed, attention.out.kernel[...])
  np.testing.assert_allclose(attention(jnp.asarray(x, jnp.float32)), expected, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_no_token_attends_to_padding(causal):
  block = make_block(nnx.Rngs(0), causal)
  x = jax.random.normal(jax.random.key(1), (2, 7, 64))
  padded = jnp.concatenate([x, 100 * jnp.ones((2, 3, 64))], axis=1)
  np.testing.assert_allclose(block(padded, 7)[:, :7], block(x), rtol=1e-5, atol=1e-5)
  if not causal:
    assert not np.allclose(block(padded)[:, :7], block(x), atol=0.1)


@pytest.mark.accelerator
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
  "causal, tokens, packed",
  [(False, 193, False), (True, 77, False), (False, 64, False), (True, 104, True)],
)
def test_cudnns_attention_is_as_accurate_as_the_written_out_one(causal, tokens, packed):
  segments = np.arange(tokens)[None].repeat(4, 0) // 30 if packed else None
  keys = jax.random.split(jax.random.key(0), 2)
  x, cotangent = (jax.random.normal(key, (4, tokens, 64)) for key in keys)

  def features_and_gradients(dtype, attention):
    backend = Backend(attention)
    create_block = lambda rngs: transformer.Block(
      64, 2, depth=3, causal=causal, family=families.CLIP, dtype=dtype, backend=backend, rngs=rngs
    )
    blocks = transformer.create_blocks(create_block, 3, nnx.Rngs(0))

    def loss(blocks, x):
      out = transformer.run_blocks(blocks, x.astype(dtype), backend, tokens // 2, segments=segments)
      return jnp.sum(out[:, 0].astype(jnp.float32) * cotangent[:, 0]), out

    result = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(blocks, x)
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result)]

  exact = features_and_gradients(jnp.float32, "written_out")
  coarse = features_and_gradients(jnp.bfloat16, "written_out")
  fused = features_and_gradients(jnp.bfloat16, "cudnn")
  for expected, plain, actual in zip(exact, coarse, fused, strict=True):
    error = lambda value, expected=expected: np.linalg.norm(value - expected)
    # bfloat16 alone explains the error; the exact gradients of key biases are 0.
    assert error(actual) < 2 * error(plain) + 1e-3 * np.linalg.norm(expected)


def read_tokens(blocks, x, backend, positions, segments=None):
  """A function of the tokens at `positions`, its gradients, and the tokens."""

  def value(blocks, x):
    tokens = transformer.run_blocks(blocks, x, backend, positions, segments=segments)
    return jnp.sum(jnp.sin(tokens)), tokens

  return jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(blocks, x)


def assert_close(actual, expected, **tolerance):
  for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("row_major", [False, True])
def test_backends_change_neither_features_nor_gradients(remat, unroll, row_major):
  blocks = transformer.create_blocks(lambda rngs: make_block(rngs), 3, nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (2, 5, 64))
  actual = read_tokens(blocks, x, Backend(remat=remat, unroll=unroll, row_major=row_major), 0)
  assert_close(actual, read_tokens(blocks, x, DEFAULT, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal, remat", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
  "positions", [3, np.array([[4, 1, 0], [2, 2, 3]])], ids=["one", "three per sequence"]
)
def test_the_last_block_of_read_tokens_equals_that_of_all_tokens(positions, causal, remat):
  blocks = transformer.create_blocks(lambda rngs: make_block(rngs, causal), 3, nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (2, 5, 64))
  actual = read_tokens(blocks, x, Backend(remat=remat), positions)
  expected = read_tokens(blocks, x, Backend(remat=remat, full_last_block=True), positions)
  assert_close(actual, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_last_block_of_read_tokens_attends_to_no_padding(causal):
  block = make_block(nnx.Rngs(0), causal)
  x = jax.random.normal(jax.random.key(1), (2, 7, 64))
  padded = jnp.concatenate([x, 100 * jnp.ones((2, 3, 64))], axis=1)
  expected = block(x)[:, 6:]
  np.testing.assert_allclose(block.of_tokens(padded, 6, 7), expected, rtol=1e-5, atol=1e-5)
  if not causal:
    assert not np.allclose(block.of_tokens(padded, 6), expected, atol=0.1)


@pytest.mark.parametrize("causal", [False, True])
def test_tokens_attend_to_their_own_segment_only(causal):
  block = make_block(nnx.Rngs(0), causal)
  x = jax.random.normal(jax.random.key(1), (2, 9, 64))
  segments = np.array([[0, 0, 0, 1, 1, 1, 1, -1, -1], [5, 5, 2, 2, 2, 2, 2, 2, 2]])
  positions = np.array([[2, 6], [1, 8]])
  together = block(x, segments=segments)
  for row in range(2):
    for segment in set(segments[row]):
      own = np.flatnonzero(segments[row] == segment)
      alone = block(x[row : row + 1, own])[0]
      np.testing.assert_allclose(together[row, own], alone, rtol=1e-5, atol=1e-5)
  read = block.of_tokens(x, positions, segments=segments)
  expected = np.take_along_axis(np.asarray(together), positions[..., None], axis=1)
  np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-5)
  fourth = block.of_tokens(x, 3, segments=segments)
  np.testing.assert_allclose(fourth, together[:, 3:4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_blocks_run_in_order(depth, remat):
  stacked, last = transformer.create_blocks(lambda rngs: make_block(rngs), depth, nnx.Rngs(0))
  x = expected = jax.random.normal(jax.random.key(1), (2, 5, 64))
  for layer in range(depth - 1):
    expected = jax.tree.map(lambda leaf, i=layer: leaf[i], stacked)(expected)
  expected = last(expected)[:, 2]
  blocks = transformer.Blocks(stacked, last)
  actual = transformer.run_blocks(blocks, x, Backend(remat=remat), positions=2)[:, 0]
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_takes_statistics_in_float32():
  norm = transformer.layer_norm(256, family=families.CLIP, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  # In bfloat16 the error of their mean would exceed their spread.
  x = 100 + jnp.arange(256, dtype=jnp.bfloat16) / 256
  exact = np.asarray(x, np.float32)
  exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
  np.testing.assert_allclose(np.asarray(norm(x[None])[0], np.float32), exact, atol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_products_are_not_rounded_on_accelerators(dtype):
  """Those of both towers, and of their gradients."""
  model = nnx.eval_shape(
    lambda: dual_encoder.create(
      "tiny", image_size=(16, 16), context_length=8, vocab_size=30, dtype=jnp.dtype(dtype),
      rngs=nnx.Rngs(0),
    )
  )  # fmt: skip
  graphdef, params = nnx.split(model, nnx.Param)

  def loss(params, pixels, tokens):
    model = nnx.merge(graphdef, params)
    return jnp.sum(model.encode_image(pixels)) + jnp.sum(model.encode_text(tokens))

  inputs = (jax.ShapeDtypeStruct((2, 16, 16, 3), "float32"), jax.ShapeDtypeStruct((2, 8), "int32"))
  program = jax.jit(jax.grad(loss)).lower(params, *inputs).as_text()
  products = re.findall(r"dot_general.*precision = \[(\w+), \w+\].* -> tensor<.*x(\w+)>", program)
  precisions = {kind: {p for p, k in products if k == kind} for _, kind in products}
  if dtype == "float32":
    assert precisions == {"f32": {"HIGHEST"}}
  else:
    assert precisions["bf16"] == {"DEFAULT"}
    assert "HIGHEST" in precisions["f32"]  # the projections to the features, which are float32
