"""Texts embedded in sorted, cut batches have the features of uncut ones, in their order."""

import jax
import numpy as np
import pytest
from flax import nnx

from dgia_jax import sharding
from dgia_jax.models import embedder
from tests.helpers import family_models, meshes, model_b
from tests.models.test_caption_packing import tokens_of


def embedder_of(graphdef, mesh):
  return embedder.Embedder(graphdef, mesh, sharding.replicated(mesh))


def unit(features):
  return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 2, 1)], ids=str)
def test_texts_have_the_features_of_uncut_ones(shape):
  graphdef, params = model_b.reference_model()
  lengths = np.random.default_rng(1).integers(3, 78, 21)  # 5 are in the last batch
  tokens_NxL = tokens_of(lengths)
  expected = nnx.merge(graphdef, params).encode_text(tokens_NxL)
  counts = []
  features = embedder_of(graphdef, meshes.mesh_of(*shape)).embed_texts(
    params, tokens_NxL, 8, counts.append
  )
  np.testing.assert_allclose(unit(features), unit(expected), atol=1e-6)
  cosines = unit(features) @ unit(features).T
  assert (cosines - np.eye(21)).max() < 0.99  # so another order would be noticed
  assert counts == [8, 8, 5]


def test_few_programs_are_compiled():
  graphdef, params = model_b.reference_model()
  made = embedder_of(graphdef, meshes.mesh_of(1, 1, 1))
  shapes, encode = [], made._encode_texts

  def recorded(params, tokens):
    shapes.append(tokens.shape)
    return encode(params, tokens)

  made._encode_texts = recorded
  made.embed_texts(params, tokens_of(np.arange(4, 78)), 8)
  assert set(shapes) == {(8, 32), (8, 64), (8, 77)} and len(shapes) == 10
  assert encode._cache_size() == 3


@pytest.mark.parametrize(
  ("shape", "num_inputs", "rows"),
  [((1, 1, 1), 1, 1), ((1, 1, 1), 3, 4), ((1, 1, 1), 9, 8), ((1, 1, 1), None, 8),
   ((4, 2, 1), 1, 8), ((1, 1, 1), 0, 1)],
)  # fmt: skip
def test_few_inputs_are_padded_little(shape, num_inputs, rows):
  graphdef = nnx.graphdef(nnx.eval_shape(model_b.create))
  made = embedder_of(graphdef, meshes.mesh_of(*shape))
  assert made.whole_batch(8, num_inputs) == rows


def test_texts_of_siglip_are_not_cut():
  graphdef, params = family_models.create("siglip", (96, 32))
  tokens = np.random.default_rng(0).integers(1, family_models.VOCAB, (5, 64), np.int32)
  expected = nnx.merge(graphdef, params).encode_text(tokens)
  mesh = meshes.mesh_of(1, 1, 1)
  features = embedder_of(graphdef, mesh).embed_texts(jax.device_put(params), tokens, 4)
  np.testing.assert_allclose(unit(features), unit(expected), atol=1e-6)
