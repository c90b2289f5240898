"""The dual encoder: features of the released implementation, sizes, and options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder
from dgia_jax.models.backend import Backend
from tests.helpers import golden_data, model_b


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef, params, pixels, tokens):
  model = nnx.merge(graphdef, params)
  return model.encode_image(pixels), model.encode_text(tokens)


@pytest.mark.accelerator
def test_features_equal_the_released_implementation():
  graphdef, params = model_b.reference_model()
  reference = golden_data.arrays("p11_fwd_B")
  pixels = jnp.asarray(reference["images"].transpose(0, 2, 3, 1), jnp.float32)
  image, text = jax.jit(encode, static_argnums=0)(graphdef, params, pixels, reference["captions"])
  assert image.dtype == text.dtype == jnp.float32
  for actual, expected in ((image, reference["image_feat"]), (text, reference["text_feat"])):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_vit_b_16_has_clips_number_of_parameters():
  model = nnx.eval_shape(
    lambda: dual_encoder.create(
      "vit_b_16", image_size=(384, 128), context_length=77, vocab_size=49408, rngs=nnx.Rngs(0)
    )
  )
  _, params = model_b.split(model)
  # CLIP ViT-B/16 at 224 x 224: 149,620,737 with its temperature; 193 positions instead of 197.
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 149_620_737 - 1 - 4 * 768
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", dual_encoder.SIZES)
def test_every_size_has_features_of_its_width(name):
  size = dual_encoder.SIZES[name]
  assert size.image.width % size.image.heads == 0
  assert size.text.width % size.text.heads == 0

  def features():
    model = dual_encoder.create(
      name,
      image_size=(2 * size.patch_size, size.patch_size),
      context_length=12,
      vocab_size=30,
      rngs=nnx.Rngs(0),
    )
    pixels = jnp.zeros((3, 2 * size.patch_size, size.patch_size, 3))
    return model.encode_image(pixels), model.encode_text(jnp.zeros((3, 12), jnp.int32))

  image, text = jax.eval_shape(features)
  assert image.shape == text.shape == (3, size.feature_width)


@pytest.mark.integration
def test_remat_stores_less_for_the_backward_pass_and_changes_no_gradient():
  pixels, tokens = model_b.inputs(batch=128)
  graphdefs, params = {}, None
  tower = dual_encoder.TowerSize(width=128, depth=4, heads=2)
  size = dataclasses.replace(model_b.SIZE, image=tower, text=tower)
  for remat in (False, True):
    model = model_b.create(size=size, backend=Backend(remat=remat))
    graphdefs[remat], params = model_b.split(model)

  def loss(params, tower, remat):
    image, text = encode(graphdefs[remat], params, pixels, tokens)
    return jnp.sum((image if tower == "image" else text) ** 2)

  def stored(tower, remat):
    backward = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, tower, remat), p)[1], params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  for tower in ("image", "text"):
    assert stored(tower, True) < 0.5 * stored(tower, False)
  plain, recomputed = (
    jax.jit(jax.grad(lambda p, r=remat: loss(p, "text", r)))(params)["text"]
    for remat in (False, True)
  )
  for expected, actual in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.accelerator
def test_bfloat16_features_are_close_and_float32():
  pixels, tokens = model_b.inputs(batch=8)
  _, params = model_b.reference_model()
  precise, _ = model_b.split(model_b.create())
  coarse, _ = model_b.split(model_b.create(dtype=jnp.bfloat16))
  for expected, actual in zip(
    encode(precise, params, pixels, tokens), encode(coarse, params, pixels, tokens), strict=True
  ):
    assert actual.dtype == jnp.float32
    norms = jnp.linalg.norm(actual, axis=1) * jnp.linalg.norm(expected, axis=1)
    cosine = jnp.sum(actual * expected, axis=1) / norms
    # bfloat16 has 8 bits of precision: close, but never equal.
    assert 0.999 < float(cosine.min()) and not np.array_equal(actual, expected)


def test_patch_size_can_be_replaced():
  model = nnx.eval_shape(
    lambda: dual_encoder.create(
      "tiny", image_size=(64, 32), context_length=8, vocab_size=20, patch_size=16, rngs=nnx.Rngs(0)
    )
  )
  assert model.image.position_embedding.shape == (1 + 4 * 2, 64)


def test_weights_depend_only_on_the_seed_and_differ_between_layers():
  (_, first), (_, same), (_, other) = (
    model_b.split(model_b.create(rngs=nnx.Rngs(seed))) for seed in (0, 0, 1)
  )
  kernel = first["text"]["blocks"]["mlp"]["up"]["kernel"]
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, same)))
  assert not np.array_equal(kernel, other["text"]["blocks"]["mlp"]["up"]["kernel"])
  assert not np.array_equal(kernel[0], kernel[1])
  assert not np.array_equal(kernel[1], first["text"]["last_block"]["mlp"]["up"]["kernel"])


def test_mistakes_name_the_config_field():
  sizes = {"context_length": 8, "vocab_size": 20, "rngs": nnx.Rngs(0)}
  with pytest.raises(UserError, match=r"model\.name.*vit_b_61.*vit_b_16"):
    dual_encoder.create("vit_b_61", image_size=(64, 32), **sizes)
  with pytest.raises(UserError, match=r"dataset\.image_size \(384, 128\).*14"):
    dual_encoder.create("vit_l_14", image_size=(384, 128), **sizes)
