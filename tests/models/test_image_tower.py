"""The image tower embeds patches as a convolution does, in the order of the positions."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import model_b


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
