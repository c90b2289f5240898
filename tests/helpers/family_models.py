"""Small models of OpenCLIP and SigLIP."""

import jax
import numpy as np
from flax import nnx

from dgia_jax.models import families, pretrained
from dgia_jax.models.dual_encoder import Size, TowerSize
from tests.helpers import model_b

OPEN_CLIP = Size(
  TowerSize(64, 3, 4), TowerSize(48, 2, 2), feature_width=32, patch_size=16,
  family=families.OPEN_CLIP,
)  # fmt: skip
# An inner width that is no multiple, as in so400m.
_TOWER = TowerSize(64, 3, 4, mlp_width=176)
SIGLIP = Size(_TOWER, _TOWER, feature_width=64, patch_size=16, family=families.SIGLIP)
SIZES = {"open_clip": OPEN_CLIP, "siglip": SIGLIP}
VOCAB = 300
LENGTH = {"open_clip": 77, "siglip": 64}


def create(name, image_size):
  """(graphdef, params) with random biases and scales, so that a swapped tensor is noticed."""
  model = model_b.create(image_size, SIZES[name], VOCAB, context_length=LENGTH[name])
  graphdef, params = model_b.split(model)
  leaves, structure = jax.tree.flatten(params)
  random = np.random.default_rng(0)
  leaves = [leaf + 0.05 * random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
  return graphdef, jax.tree.unflatten(structure, leaves)


def load(path, name, image_size, family=None):
  """Loads a checkpoint into a model of a size; returns the model."""
  model = nnx.eval_shape(
    lambda: model_b.create(image_size, SIZES[name], VOCAB, context_length=LENGTH[name])
  )
  graphdef, template = model_b.split(model)
  family = family or SIZES[name].family
  loaded = pretrained.load_pretrained(str(path), template, image_size=image_size, family=family)
  return nnx.merge(graphdef, loaded.params)
