"""The image tower embeds patches as a convolution does, in the order of the positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import family_models, model_b


def test_embedding_equals_a_strided_convolution():
  tower = model_b.create(image_size=(48, 80)).image
  pixels = jax.random.normal(jax.random.key(0), (2, 48, 80, 3))
  patches = jax.lax.conv_general_dilated(
    pixels,
    tower.patch_embedding[...],
    window_strides=(16, 16),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  expected = patches.reshape(2, 15, 128) + tower.position_embedding[1:][None]
  tokens = tower.embed_patches(pixels)
  np.testing.assert_allclose(tokens[:, 1:], expected, atol=1e-5)
  np.testing.assert_allclose(
    tokens[1, 0], tower.class_embedding[...] + tower.position_embedding[0], atol=1e-6
  )


def test_the_feature_depends_on_every_pixel():
  model = model_b.create()
  pixels, _ = model_b.inputs(batch=1)
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.encode_image(p) ** 2)))(pixels)
  assert bool((jnp.abs(gradient) > 0).all())


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_left_out_patches_do_not_count_and_order_does_not_matter(family):
  """All patches in another order give the feature of the image; a changed left-out one does not."""
  size = model_b.SIZE if family == "clip" else family_models.SIGLIP
  model = model_b.create(image_size=(96, 32), size=size)
  pixels, _ = model_b.inputs(batch=2)
  side = size.patch_size
  columns = 32 // side
  num_patches = (96 // side) * columns
  encode = jax.jit(model.encode_image)
  order = jnp.stack([jnp.arange(num_patches)[::-1], jnp.roll(jnp.arange(num_patches), 3)])
  np.testing.assert_allclose(encode(pixels, order), encode(pixels), rtol=1e-4, atol=1e-5)
  kept, left_out = order[:, :-2], order[:, -1]
  changed = pixels
  for image, patch in enumerate(np.asarray(left_out)):
    top, left = side * (patch // columns), side * (patch % columns)
    changed = changed.at[image, top : top + side, left : left + side].add(1.0)
  np.testing.assert_array_equal(encode(changed, kept), encode(pixels, kept))
  assert float(jnp.abs(encode(changed) - encode(pixels)).max()) > 1e-4
  assert float(jnp.abs(encode(pixels, kept) - encode(pixels)).max()) > 1e-4
