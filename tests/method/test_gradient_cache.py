import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.method import gradient_cache, losses
from tests.helpers.meshes import mesh_of

MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]
BATCH, PATCHES, WIDTH, DEPTH = 64, 256, 16, 12


@pytest.fixture
def problem(rng):
  """(params, batch): a deep encoder of few weights, and pairs that are large beside them."""
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {"stack": 0.25 * draw(DEPTH, WIDTH, WIDTH), "bias": 0.1 * draw(DEPTH, WIDTH)}
  pair = lambda: draw(BATCH, 1, WIDTH) + 0.5 * draw(BATCH, PATCHES, WIDTH)
  return params, {"image": pair(), "text": pair()}


def encode(params, batch):
  layer = lambda x, p: (jnp.tanh(x @ p["stack"] + p["bias"][None, None]), None)
  tower = lambda x: jnp.mean(jax.lax.scan(layer, x, params)[0], axis=1)
  return [(tower(batch["image"]), tower(batch["text"]))]


def loss(features, params):
  """Every pair against every other: a part of the batch alone has another loss.

  The loss itself reads a parameter, as it does a learnable temperature.
  """
  ((image, text),) = features
  scores = 10 * jnp.exp(params["bias"][0, 0]) * losses.cosine(image, text)
  return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores, axis=1))), scores


def compiled(params, batch, mesh, parts):
  function = lambda params, batch: gradient_cache.gradient_of(
    loss, encode, params, batch, parts=parts, mesh=mesh
  )
  layout = (sharding.replicated(mesh), sharding.batch(mesh))
  jitted = jax.jit(function, in_shardings=layout, out_shardings=sharding.replicated(mesh))
  return jitted.lower(params, batch).compile()


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_parts_give_the_gradient_of_the_whole_batch(problem, mesh_shape, parts):
  mesh = mesh_of(*mesh_shape)
  params, batch = jax.device_put(problem, (sharding.replicated(mesh), sharding.batch(mesh)))
  gradient, scores = compiled(params, batch, mesh, parts)(params, batch)
  expected, expected_scores = jax.jit(
    jax.grad(lambda params, batch: loss(encode(params, batch), params), has_aux=True)
  )(*problem)
  np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)
  for name, value in expected.items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(gradient[name], value, atol=1e-5 * scale, err_msg=name)
    assert gradient[name].dtype == jnp.float32


def test_a_part_alone_has_another_gradient(problem):
  """What is tested above is not true of accumulation as usual, the mean over parts."""
  params, batch = problem
  of_part = jax.grad(lambda params, batch: loss(encode(params, batch), params)[0])
  whole = jax.jit(of_part)(params, batch)["stack"]
  halves = [jax.tree.map(lambda x, h=half: x[h::2], batch) for half in (0, 1)]
  mean = sum(jax.jit(of_part)(params, half)["stack"] for half in halves) / 2
  # A thousand times what the exact one may differ by.
  assert np.abs(whole - mean).max() > 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_split_deals_out_every_devices_rows_and_join_takes_them_back(mesh_shape):
  mesh = mesh_of(*mesh_shape)
  rows = jax.device_put(np.arange(32), sharding.batch(mesh))
  parts = jax.jit(lambda x: gradient_cache.split(x, 4, mesh))(rows)
  np.testing.assert_array_equal(parts, np.arange(32).reshape(8, 4).T)
  of_device = {shard.device: set(np.ravel(shard.data)) for shard in rows.addressable_shards}
  for shard in parts.addressable_shards:
    assert set(np.ravel(shard.data)) == of_device[shard.device]
  np.testing.assert_array_equal(jax.jit(lambda x: gradient_cache.join(x, mesh))(parts), rows)


def collective_elements(text):
  """Elements in the result of every collective of a compiled program."""
  names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
  for result in re.findall(rf"= (.*?) (?:{names})(?:-start)?\(", text):
    for shape in re.findall(r"\w+\[([\d,]*)\]", result):
      yield math.prod(int(size) for size in shape.split(",") if size)


@pytest.mark.parametrize("mesh_shape", MESHES[1:], ids=str)
def test_parts_move_no_pair_between_devices_and_save_memory(problem, mesh_shape):
  mesh = mesh_of(*mesh_shape)
  programs = {parts: compiled(*problem, mesh, parts) for parts in (1, 2, 4)}
  smallest_part = BATCH * PATCHES * WIDTH // sharding.batch_shards(mesh) // 4
  for program in programs.values():
    # The gradient and the features travel, as without parts.
    assert 0 < max(collective_elements(program.as_text())) < smallest_part
  memory = {parts: p.memory_analysis().temp_size_in_bytes for parts, p in programs.items()}
  assert memory[2] < 0.7 * memory[1] and memory[4] < 0.7 * memory[2]


def test_parts_that_do_not_divide_the_batch_are_refused():
  with pytest.raises(ValueError, match="a batch of 8 rows does not divide into 3 equal parts"):
    gradient_cache.split({"image": jnp.ones((8, 2))}, 3, mesh_of(1, 1, 1))
