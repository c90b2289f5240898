"""Parameters become checkpoint tensors, and checkpoint tensors become parameters."""

import jax
import numpy as np
import pytest

from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained import tensor_names
from tests.helpers import model_b

TABLES = {"openai": tensor_names.OPENAI, "hugging_face": tensor_names.HUGGING_FACE}


@pytest.fixture(scope="module")
def params():
  """Random parameters, biases included, so that a swapped tensor is noticed."""
  _, params = model_b.split(model_b.create())
  leaves, structure = jax.tree.flatten(params)
  random = np.random.default_rng(0)
  return jax.tree.unflatten(structure, [random.random(x.shape, np.float32) for x in leaves])


@pytest.mark.parametrize("table", TABLES)
def test_writing_and_reading_is_exact(params, table):
  tensors = params_lib.write_tensors(params, TABLES[table])
  back, problems = params_lib.read_params(tensors, params_lib.flatten(params), TABLES[table])
  assert not problems
  assert jax.tree.structure(back) == jax.tree.structure(params)
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, params)))
  assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("table", TABLES)
def test_every_parameter_has_its_own_tensors(params, table):
  rules = TABLES[table]
  paths = params_lib.flatten(params).keys()
  assert rules.keys() == {path for path in paths if params_lib.LAST not in path}
  used = [name for rule in rules.values() for name in rule.names]
  assert len(used) == len(set(used))


def test_written_names_and_shapes_are_those_of_the_reference_checkpoint(params):
  tensors = params_lib.write_tensors(params, tensor_names.OPENAI)
  reference = model_b.checkpoint()
  del tensors["visual.positional_embedding"], reference["visual.positional_embedding"]
  assert jax.tree.map(np.shape, tensors) == jax.tree.map(np.shape, reference)


def test_all_problems_are_listed_together(params):
  tensors = params_lib.write_tensors(params, tensor_names.OPENAI)
  del tensors["visual.ln_pre.bias"]
  del tensors["transformer.resblocks.1.mlp.c_fc.weight"]
  tensors["visual.proj"] = tensors["visual.proj"].T
  tensors["visual.attnpool.c_proj.weight"] = np.zeros(3)
  _, problems = params_lib.read_params(tensors, params_lib.flatten(params), tensor_names.OPENAI)
  assert sorted(problems) == [
    "transformer.resblocks.1.mlp.c_fc.weight (512, 128) is missing",
    "visual.attnpool.c_proj.weight has no place in the model",
    "visual.ln_pre.bias (128,) is missing",
    "visual.proj is (512, 128), the model needs (128, 512)",
  ]


def test_a_missing_part_of_a_joined_tensor_is_named(params):
  tensors = params_lib.write_tensors(params, tensor_names.HUGGING_FACE)
  del tensors["text_model.encoder.layers.2.self_attn.k_proj.weight"]
  _, problems = params_lib.read_params(
    tensors, params_lib.flatten(params), tensor_names.HUGGING_FACE
  )
  assert problems == ["text_model.encoder.layers.2.self_attn.k_proj.weight (128, 128) is missing"]
