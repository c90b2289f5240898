import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.method import augment
from dgia_jax.method.augment import Masking
from dgia_jax.models import pixels as pixels_lib
from tests.helpers import recipe
from tests.helpers.golden_data import description

CLIP_MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.float32([0.26862954, 0.26130258, 0.27577711])
PLAIN = dict(flip_prob=0.0, padding=0, erase_prob=0.0)
START, END, MASK = 49406, 49407, 49405
# Compiling is what takes time here, so most tests share one shape.
SHAPE = COUNT, HEIGHT, WIDTH, _ = (1500, 40, 20, 3)

_distort = jax.jit(recipe.distort_images, static_argnames=("padding", "erase_area", "erase_aspect"))


def distort(images, key=0, **options):
  return np.asarray(_distort(jax.random.key(key), images, **options))


def expected_pixels(images):
  return (images.astype(np.float64) / 255 - CLIP_MEAN) / CLIP_STD


def random_images(rng):
  return rng.integers(0, 256, SHAPE).astype(np.uint8)


def flat_images(shape=SHAPE):
  return np.full(shape, 60, np.uint8)


def places():
  """Images whose pixels say where they are: red the row, green the column (from 1), blue 200."""
  row, column = np.indices((HEIGHT, WIDTH))
  image = np.stack([row + 1, column + 1, np.full_like(row, 200)], axis=-1).astype(np.uint8)
  return np.broadcast_to(image, SHAPE)


def stored_pixels(normalised):
  return np.rint((normalised * CLIP_STD + CLIP_MEAN) * 255).astype(int)


def erased_boxes(images, key=0, **options):
  """(top, left, height, width) of what was erased in every image; height 0 for nothing.

  Fails unless the erased pixels are one full rectangle and no other pixel changed.
  """
  options = PLAIN | dict(erase_prob=1.0) | options
  result = distort(images, key, **options)
  erased = (result == CLIP_MEAN).all(axis=-1)
  np.testing.assert_allclose(result[~erased], expected_pixels(images)[~erased], atol=1e-6)
  boxes = np.zeros((len(images), 4), int)
  for number in np.flatnonzero(erased.any(axis=(1, 2))):
    rows, columns = np.flatnonzero(erased[number].any(1)), np.flatnonzero(erased[number].any(0))
    box = (rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1)
    assert erased[number].sum() == box[2] * box[3], "what is erased is not a rectangle"
    boxes[number] = box
  return boxes


def test_normalize_pixels_with_clips_numbers(rng):
  images = rng.integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
  actual = pixels_lib.normalize_pixels(images)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected_pixels(images), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(pixels_lib.normalize_pixels(images[0, 0]), actual[0, 0], atol=1e-6)
  siglip = pixels_lib.normalize_pixels(images, pixels_lib.SIGLIP)
  np.testing.assert_allclose(siglip, images / 127.5 - 1, atol=1e-6)
  black, white = pixels_lib.normalize_pixels(np.uint8([[0] * 3, [255] * 3]))
  np.testing.assert_allclose(black, [-1.792263, -1.752097, -1.480218], rtol=1e-5)
  np.testing.assert_allclose(white, [1.930336, 2.074884, 2.145897], rtol=1e-5)


def test_nothing_distorts_when_everything_is_off(rng):
  images = random_images(rng)
  actual = distort(images, **PLAIN)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected_pixels(images), rtol=1e-5, atol=1e-6)


def test_same_key_same_views_other_key_other_views(rng):
  images = np.broadcast_to(random_images(rng)[0], SHAPE)
  options = dict(padding=2)
  first = distort(images, 1, **options)
  np.testing.assert_array_equal(first, distort(images, 1, **options))
  assert not np.array_equal(first, distort(images, 2, **options))
  # The same image many times: every place in the batch draws for itself.
  assert len({image.tobytes() for image in first[:8]}) == 8


@pytest.mark.parametrize("probability, step", [(1.0, -1), (0.0, 1)])
def test_flip_mirrors_columns_exactly(rng, probability, step):
  images = random_images(rng)
  actual = distort(images, **PLAIN | dict(flip_prob=probability))
  np.testing.assert_array_equal(actual, distort(images[:, :, ::step], **PLAIN))


def test_flip_happens_half_of_the_time():
  pixels = stored_pixels(distort(places(), **PLAIN | dict(flip_prob=0.5)))
  assert set(pixels[:, 0, 0, 1]) == {1, WIDTH}
  assert 0.44 < np.mean(pixels[:, 0, 0, 1] == WIDTH) < 0.56  # 4.6 deviations


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crop_moves_by_every_shift_inside_a_black_frame(flip):
  """With the flip on, the mirrored image is what moves."""
  padding = 2
  actual = stored_pixels(distort(places(), **PLAIN | dict(padding=padding, flip_prob=flip)))
  image = places()[0, :, :: -1 if flip else 1]
  framed = np.pad(image, ((padding,) * 2, (padding,) * 2, (0, 0)))
  crops = {
    framed[top : top + HEIGHT, left : left + WIDTH].astype(int).tobytes(): (top, left)
    for top in range(2 * padding + 1)
    for left in range(2 * padding + 1)
  }
  found = [crops[image.tobytes()] for image in actual]  # KeyError: not a crop of the frame
  counts = np.zeros((5, 5))
  np.add.at(counts, tuple(np.transpose(found)), 1)
  # 60 expected of each of the 25 shifts, deviation 7.6.
  assert counts.min() > 25 and counts.max() < 95


def test_erased_boxes_have_the_asked_area_and_aspect():
  top, left, rows, columns = erased_boxes(flat_images()).T
  assert (rows > 0).all()
  # Sides are rounded: the true side lies within half a pixel.
  area = HEIGHT * WIDTH
  assert ((rows + 0.5) * (columns + 0.5) >= 0.02 * area).all()
  assert ((rows - 0.5) * (columns - 0.5) <= 0.4 * area).all()
  assert ((rows + 0.5) / (columns - 0.5) >= 0.3).all()
  assert ((rows - 0.5) / (columns + 0.5) <= 3.3).all()
  # And the whole ranges are used.
  share, aspect = rows * columns / area, rows / columns
  assert share.min() < 0.04 and share.max() > 0.36
  assert aspect.min() < 0.4 and aspect.max() > 2.8


def test_aspect_is_drawn_evenly_on_a_logarithmic_scale():
  """In a square, tall and wide boxes balance; drawn evenly on a linear scale, 77 % are tall."""
  boxes = erased_boxes(flat_images((1500, 32, 32, 3)), erase_area=(0.05, 0.1))
  tall = np.mean(boxes[:, 2] > boxes[:, 3]) + np.mean(boxes[:, 2] == boxes[:, 3]) / 2
  assert 0.45 < tall < 0.55


def test_erased_boxes_reach_every_border():
  top, left, rows, columns = erased_boxes(flat_images(), key=1).T
  assert top.min() == 0 and left.min() == 0
  assert (top + rows).max() == HEIGHT and (left + columns).max() == WIDTH
  # Evenly placed: the mean place is the middle of the free room.
  assert abs(np.mean(top / (HEIGHT - rows)) - 0.5) < 0.04
  assert abs(np.mean(left / (WIDTH - columns)) - 0.5) < 0.04


def test_erased_pixels_hold_the_mean_as_a_plain_value():
  """The mean's own value in normalised space, as released, and not its normalised value, 0."""
  images = flat_images()
  result = distort(images, **PLAIN | dict(erase_prob=1.0))
  values = np.unique(result.reshape(-1, 3), axis=0)
  kept = distort(images, **PLAIN)[0, 0, 0]
  np.testing.assert_array_equal(values, sorted([kept, CLIP_MEAN], key=tuple))


def test_erasing_happens_half_of_the_time():
  boxes = erased_boxes(flat_images(), erase_prob=0.5)
  assert 0.44 < np.mean(boxes[:, 2] > 0) < 0.56


@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (3, 40)])
def test_tiny_images_survive_boxes_that_hardly_fit(height, width):
  """What is erased never spans the image; `erased_boxes` checks all that is not erased."""
  rows, columns = erased_boxes(flat_images((300, height, width, 3))).T[2:]
  assert (rows < height).all() and (columns < width).all()
  assert (rows > 0).any() == (height > 1)


def test_no_box_when_none_fits():
  images = flat_images((50, 8, 8, 3))
  boxes = erased_boxes(images, erase_area=(0.99, 1.0), erase_aspect=(0.999, 1.001))
  assert not boxes.any()


def tokens_of(*captions, length=10):
  rows = [[START, *words, END] for words in captions]
  return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


_mask = jax.jit(recipe.mask_tokens, static_argnames="mask_first")


def mask(tokens, key=0, **options):
  return np.asarray(_mask(jax.random.key(key), tokens, masking=Masking.below(MASK), **options))


@pytest.mark.parametrize("mask_first", [True, False])
def test_only_words_are_masked(mask_first):
  tokens = tokens_of([5, MASK, 7, 0, 9], [MASK - 1, 1], [], [MASK])
  actual = mask(tokens, ratio=1.0, mask_first=mask_first)
  expected = tokens_of([MASK, MASK, MASK, 0, MASK], [MASK, MASK], [], [MASK])
  np.testing.assert_array_equal(actual, expected)
  assert actual.dtype == np.int32


def test_without_a_start_token_the_first_word_comes_first():
  """SigLIP's ids: padding, end and mask below the words, no start token."""
  pad, end, siglip = 0, 1, Masking(mask_id=4, first_id=5, end_id=90, first_word=0)
  tokens = np.int32([[7, 8, 89, end, pad], [end, pad, pad, pad, pad], [3, 4, 5, 90, end]])
  masked = lambda **options: np.asarray(
    recipe.mask_tokens(jax.random.key(0), tokens, masking=siglip, **options)
  )
  expected = np.int32([[4, 4, 4, end, pad], [end, pad, pad, pad, pad], [3, 4, 4, 90, end]])
  np.testing.assert_array_equal(masked(ratio=1.0, mask_first=False), expected)
  expected = np.int32([[4, 8, 89, end, pad], [end, pad, pad, pad, pad], [3, 4, 5, 90, end]])
  np.testing.assert_array_equal(masked(ratio=0.0, mask_first=True), expected)


def test_ratio_zero_masks_the_first_word_or_nothing():
  tokens = tokens_of([5, 6, 7], [8], [])
  np.testing.assert_array_equal(mask(tokens, ratio=0.0, mask_first=False), tokens)
  expected = tokens_of([MASK, 6, 7], [MASK], [])
  np.testing.assert_array_equal(mask(tokens, ratio=0.0, mask_first=True), expected)


def test_empty_caption_keeps_its_end():
  """The released code masks the end token here, and the feature then comes from the start token."""
  empty = tokens_of([])
  for key in range(5):
    np.testing.assert_array_equal(mask(empty, key, ratio=1.0), empty)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_each_word_is_masked_with_the_ratio(ratio):
  tokens = np.tile(tokens_of([5, 6, 7, 8, 9, 10, 11, 12]), (2000, 1))
  masked = mask(tokens, ratio=ratio, mask_first=False)[:, 1:9] == MASK
  np.testing.assert_allclose(masked.mean(axis=0), ratio, atol=0.05)  # 4.5 deviations at 0.5
  # Independently: the number masked has a binomial's variance.
  assert masked.sum(axis=1).var() == pytest.approx(8 * ratio * (1 - ratio), rel=0.2)
  assert len(np.unique(masked[:50], axis=0)) > 4


def test_same_key_same_masks():
  tokens = np.tile(tokens_of([5, 6, 7, 8, 9, 10, 11, 12]), (20, 1))
  np.testing.assert_array_equal(mask(tokens, 3), mask(tokens, 3))
  assert not np.array_equal(mask(tokens, 3), mask(tokens, 4))


@pytest.mark.parametrize("name, facts", description("p10_masking").items())
def test_masking_counts_equal_the_reference(name, facts):
  """Frequencies of the released code; differing by intent where the first token is no word."""
  del name
  ids, runs = np.int32(facts["ids"]), 4000
  eligible = (ids > 0) & (ids < MASK)
  assert eligible.sum() == facts["eligible"]
  masked = (mask(np.tile(ids, (runs, 1)), 5) == MASK) & (ids != MASK)[None]
  expected = np.where(eligible, facts["frac_per_position"], 0.0)
  deviation = np.sqrt(0.25 / runs + 0.25 / facts["runs"])
  np.testing.assert_allclose(masked.mean(axis=0), expected, atol=4.5 * deviation)
  if eligible[1]:
    assert masked[:, 1].all()
    counts = masked.sum(axis=1)
    scale = facts["std_masked"] * np.sqrt(1 / runs + 1 / facts["runs"])
    assert counts.mean() == pytest.approx(facts["mean_masked_tokens"], abs=4.5 * scale + 1e-9)
    assert counts.std() == pytest.approx(facts["std_masked"], abs=0.06 * facts["std_masked"])


def test_views_do_not_depend_on_how_the_batch_is_split(rng):
  images = rng.integers(0, 256, (16, 24, 12, 3)).astype(np.uint8)
  tokens = rng.integers(1, 100, (16, 20)).astype(np.int32)

  def both(key, images, tokens):
    image_key, text_key = jax.random.split(key)
    return recipe.distort_images(image_key, images), recipe.mask_tokens(
      text_key, tokens, masking=Masking.below(100)
    )

  mesh = sharding.create_mesh(data=4, fsdp=2)
  layout = sharding.batch(mesh)
  split = jax.jit(
    both, in_shardings=(sharding.replicated(mesh), layout, layout), out_shardings=(layout, layout)
  )(jax.random.key(9), images, tokens)
  whole = jax.jit(both)(jax.random.key(9), images, tokens)
  assert {len(shard.data) for shard in split[0].addressable_shards} == {2}
  np.testing.assert_array_equal(split[1], whole[1])
  np.testing.assert_allclose(split[0], whole[0], rtol=0, atol=1e-6)


def test_every_image_keeps_other_patches_and_equally_many():
  kept = np.asarray(augment.kept_patches(jax.random.key(0), 2000, 10, 0.35))
  assert kept.shape == (2000, 6) and all(len(set(row)) == 6 for row in kept)
  counts = np.bincount(kept.ravel(), minlength=10)
  assert len(counts) == 10 and np.all(np.abs(counts - 1200) < 5 * np.sqrt(2000 * 0.6 * 0.4))
  again = augment.kept_patches(jax.random.key(0), 2000, 10, 0.35)
  assert np.array_equal(kept, again)
  assert not np.array_equal(kept, augment.kept_patches(jax.random.key(1), 2000, 10, 0.35))


@pytest.mark.parametrize("ratio, count", [(0.01, 10), (0.5, 5), (0.99, 1), (1.0, 1)])
def test_at_least_one_patch_is_kept(ratio, count):
  assert augment.kept_patches(jax.random.key(0), 4, 10, ratio).shape == (4, count)
  assert augment.kept_patches(jax.random.key(0), 4, 10, 0.0) is None
