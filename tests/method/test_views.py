import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import config as config_lib
from dgia_jax.method import augment, random_streams, views
from dgia_jax.method.augment import Masking
from dgia_jax.models import pixels

MASK = 100


def two_views(images, tokens, with_distorted=True, **changes):
  settings = config_lib.base().augment
  settings.update(padding=2, **changes)
  return views.two_views(
    jax.random.key(3),
    jnp.asarray(images),
    jnp.asarray(tokens),
    settings=settings,
    masking=Masking.below(MASK),
    pixel_statistics=pixels.CLIP,
    with_distorted=with_distorted,
  )


@pytest.fixture
def batch(rng):
  images = rng.integers(0, 256, (64, 12, 6, 3)).astype(np.uint8)
  return images, rng.integers(1, MASK, (64, 9)).astype(np.int32)


def test_the_distorted_view_is_drawn_as_from_the_halves_of_a_split_key():
  """So was every run of earlier releases."""
  key = jax.random.key(7)
  numbers = random_streams.DISTORTED_IMAGE, random_streams.DISTORTED_TEXT
  for number, half in zip(numbers, jax.random.split(key), strict=True):
    assert random_streams.stream(key, number) == half


def test_the_clean_view_is_the_stored_pair(batch):
  images, tokens = batch
  pixels_BxV, tokens_BxV = two_views(images, tokens)
  clean = pixels.normalize_pixels(images, pixels.CLIP)
  np.testing.assert_allclose(pixels_BxV[:, 0], clean, atol=1e-6)
  assert np.array_equal(tokens_BxV[:, 0], tokens)


def test_words_of_the_clean_view_are_masked_with_their_own_ratio(batch):
  images, tokens = batch
  _, tokens_BxV = two_views(images, tokens, clean_mask_ratio=0.15)
  masked = np.asarray(tokens_BxV[:, 0] == MASK)
  assert 0.1 < masked.mean() < 0.2
  assert masked[:, 1].mean() < 0.5  # `mask_first` belongs to the distorted view
  assert np.array_equal(np.where(masked, tokens, tokens_BxV[:, 0]), tokens)


def test_images_of_the_clean_view_are_mirrored_and_shifted_and_never_erased(batch):
  images, tokens = batch
  clean = two_views(images, tokens)[0][:, 0]
  mirrored, _ = two_views(images, tokens, clean_flip_prob=1.0)
  assert np.array_equal(mirrored[:, 0], clean[:, :, ::-1])
  shifted, _ = two_views(images, tokens, clean_padding=1)
  same = [np.array_equal(a, b) for a, b in zip(shifted[:, 0], clean, strict=True)]
  assert 0 < np.mean(same) < 0.4  # one of nine shifts is none


def test_the_distorted_view_does_not_depend_on_the_clean_one(batch):
  plain = two_views(*batch)
  light = two_views(*batch, clean_flip_prob=0.5, clean_padding=1, clean_mask_ratio=0.15)
  for a, b in zip(plain, light, strict=True):
    assert np.array_equal(a[:, 1], b[:, 1]) and not np.array_equal(a[:, 0], b[:, 0])
  alone = two_views(*batch, with_distorted=False, clean_mask_ratio=0.15)
  assert np.array_equal(alone[1][:, 0], light[1][:, 0])


def fake_encode(params, pixels, tokens, kept=None):
  """Features that tell how many patches were read."""
  number = -1.0 if kept is None else float(kept.shape[1])
  return jnp.full((len(pixels), 2), number), tokens[:, :2].astype(jnp.float32)


def test_patches_are_left_out_of_the_distorted_view_alone(batch):
  pixels_BxV, tokens_BxV = two_views(*batch)
  kept = augment.kept_patches(jax.random.key(0), 64, 10, 0.4)
  clean, distorted = views.encode_views(fake_encode, {}, pixels_BxV, tokens_BxV, kept)
  assert np.all(clean.image == -1) and np.all(distorted.image == 6)
  assert np.array_equal(distorted.text, tokens_BxV[:, 1, :2])
  for needed in (True, False):
    _, maybe = views.encode_views(
      fake_encode, {}, pixels_BxV, tokens_BxV, kept, jnp.asarray(needed)
    )
    assert np.all(maybe.image == (6 if needed else -1))
    assert np.array_equal(maybe.text, distorted.text if needed else clean.text)
