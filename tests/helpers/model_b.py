"""Model B of the reference numbers: its size, its checkpoint and a model with those weights."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.models.pretrained import position_embedding, tensor_names
from tests.helpers import golden_data

IMAGE_SIZE = (96, 32)
SIZE = dual_encoder.Size(
  image=dual_encoder.TowerSize(width=128, depth=2, heads=2),
  text=dual_encoder.TowerSize(width=128, depth=3, heads=2),
  feature_width=512,
  patch_size=16,
)


def create(image_size=IMAGE_SIZE, size=SIZE, vocab_size=1000, **options):
  """Creates a model of this size with initial weights."""
  options = {"context_length": 77, "rngs": nnx.Rngs(0)} | options
  return dual_encoder.DualEncoder(size, image_size=image_size, vocab_size=vocab_size, **options)


def split(model):
  """Splits a model into (graphdef, nested dict of parameters)."""
  graphdef, params = nnx.split(model, nnx.Param)
  return graphdef, nnx.to_pure_dict(params)


def checkpoint():
  """Tensors of the reference checkpoint: OpenAI's names, torch layout, float16, a 4 x 4 grid."""
  return golden_data.arrays("p11_ckpt_B")


def reference_model():
  """Returns (graphdef, params) of the reference model for images of 96 x 32."""
  graphdef, template = split(create())
  tensors = checkpoint()
  name = "visual.positional_embedding"
  tensors[name] = position_embedding.resize(tensors[name].astype(np.float32), (4, 4), (6, 2))
  params, problems = pretrained.read_params(
    tensors, pretrained.flatten(template), tensor_names.OPENAI
  )
  assert not problems
  return graphdef, params


def inputs(batch=2, length=77, image_size=IMAGE_SIZE, vocab_size=1000, seed=0):
  """Random pixels and tokens; every text ends with the highest id, followed by zeros."""
  random = np.random.default_rng(seed)
  pixels = random.standard_normal((batch, *image_size, 3), np.float32)
  tokens = random.integers(1, vocab_size - 3, (batch, length), np.int32)
  for row, end in enumerate(random.integers(2, length, batch)):
    tokens[row, 0] = vocab_size - 2
    tokens[row, end] = vocab_size - 1
    tokens[row, end + 1 :] = 0
  return jnp.asarray(pixels), jnp.asarray(tokens)
