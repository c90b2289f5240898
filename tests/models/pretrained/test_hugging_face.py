"""transformers computes equal features from our folders, and their weights load unchanged."""

import jax
import numpy as np
import pytest
from flax import nnx

from dgia_jax.models import pixels as pixels_lib
from dgia_jax.models import pretrained
from tests.helpers import model_b

OBLONG, SQUARE = (96, 32), (64, 64)


def random_model(image_size):
  """(graphdef, params) with random biases and scales, so that a swapped tensor is noticed."""
  graphdef, params = model_b.split(model_b.create(image_size=image_size))
  leaves, structure = jax.tree.flatten(params)
  random = np.random.default_rng(0)
  leaves = [leaf + 0.05 * random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
  return graphdef, jax.tree.unflatten(structure, leaves)


def assert_close(actual, expected):
  expected = np.asarray(expected)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("image_size", [OBLONG, SQUARE])
def test_transformers_gives_equal_features(tmp_path, image_size):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  graphdef, params = random_model(image_size)
  pretrained.write_folder(tmp_path, params, image_size=image_size)
  theirs, report = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  pixels, tokens = model_b.inputs(image_size=image_size)
  ours = nnx.merge(graphdef, params)
  with torch.no_grad():
    image = theirs.get_image_features(
      pixel_values=torch.tensor(np.array(pixels)).permute(0, 3, 1, 2),
      interpolate_pos_encoding=True,
    )
    text = theirs.get_text_features(input_ids=torch.tensor(np.array(tokens), dtype=torch.long))
  assert_close(image.pooler_output, ours.encode_image(pixels))
  assert_close(text.pooler_output, ours.encode_text(tokens))
  assert float(theirs.logit_scale.detach().exp()) == pytest.approx(50)


def test_transformers_normalises_pixels_as_we_do(tmp_path):
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from PIL import Image

  _, params = random_model(OBLONG)
  pretrained.write_folder(tmp_path, params, image_size=OBLONG)
  processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
  pixels = np.random.default_rng(0).integers(0, 256, (*OBLONG, 3), np.uint8)
  actual = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
  expected = np.asarray(pixels_lib.normalize_pixels(pixels)).transpose(2, 0, 1)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  other = processor(Image.new("RGB", (50, 70)), return_tensors="np")["pixel_values"]
  assert other.shape == (1, 3, *OBLONG)


@pytest.mark.parametrize("image_size", [OBLONG, SQUARE])
def test_a_written_folder_loads_unchanged(tmp_path, image_size):
  _, params = random_model(image_size)
  pretrained.write_folder(tmp_path, params, image_size=image_size)
  back = pretrained.load_pretrained(str(tmp_path), params, image_size=image_size)
  assert back.dropped == ("logit_scale",)
  table, original = (tree["image"].pop("position_embedding") for tree in (back.params, params))
  # The table of an oblong image was stored as a square.
  np.testing.assert_allclose(table, original, rtol=0, atol=1e-6)
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back.params, params)))
