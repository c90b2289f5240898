import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.method import lora, train_state
from dgia_jax.models import dual_encoder
from tests.helpers import recipe
from tests.helpers.trees import by_name


@pytest.fixture(scope="module")
def vit_b_16():
  """Shapes of the real model's parameters by name, without allocating them."""
  model = nnx.eval_shape(
    lambda: dual_encoder.create(
      "vit_b_16", image_size=(384, 128), context_length=77, vocab_size=49408, rngs=nnx.Rngs(0)
    )
  )
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def specs(mesh, tree):
  """{path: PartitionSpec}"""
  return {name: layout.spec for name, layout in by_name(sharding.parameters(mesh, tree)).items()}


def test_several_tpu_slices_are_refused():
  slices = [types.SimpleNamespace(platform="tpu", slice_index=number // 2) for number in range(4)]
  with pytest.raises(UserError, match="several TPU slices"):
    sharding.create_mesh(devices=slices)


@pytest.mark.parametrize(
  "sizes, shape",
  [((), (8, 1, 1)), ((2, 2, 2), (2, 2, 2)), ((2, -1, 2), (2, 2, 2)), ((-1, 4, 1), (2, 4, 1))],
)
def test_create_mesh_arranges_all_devices(sizes, shape):
  mesh = sharding.create_mesh(*sizes)
  assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
  assert set(mesh.devices.flat) == set(jax.devices())
  assert sharding.batch_shards(mesh) == shape[0] * shape[1]


def test_create_mesh_of_chosen_devices():
  mesh = sharding.create_mesh(devices=jax.devices()[2:5])
  assert mesh.shape["data"] == 3 and set(mesh.devices.flat) == set(jax.devices()[2:5])


@pytest.mark.parametrize(
  "sizes, message",
  [
    ((3, 1, 1), "mesh.data=3 mesh.fsdp=1 mesh.tensor=1 does not fit 8 device"),
    ((-1, 3, 1), "mesh.fsdp=3.*does not fit 8 device.*; lower mesh.fsdp to a divisor of 8$"),
    ((-1, 16, 1), "mesh.fsdp=16.*does not fit 8 device.*; lower mesh.fsdp to a divisor of 8$"),
    ((-1, 3, 2), "the product must be 8; lower mesh.fsdp x mesh.tensor to a divisor of 8$"),
    ((3, -1, 1), "the product must be 8; lower mesh.data to a divisor of 8$"),
    ((4, 1, 1), "the product must be 8; set mesh.data=-1"),
    ((-1, -1, 1), "one of them may be -1"),
    ((8, 0, 1), "mesh.fsdp=0.*positive"),
    ((-2, 1, 1), "mesh.data=-2.*positive"),
  ],
)
def test_create_mesh_names_sizes_that_do_not_fit(sizes, message):
  with pytest.raises(UserError, match=message) as caught:
    sharding.create_mesh(*sizes)
  assert "\n" not in str(caught.value)


def test_rules_on_the_real_model(vit_b_16):
  actual = specs(sharding.create_mesh(2, 2, 2), vit_b_16)
  expected = {
    "blocks/attention/qkv/kernel": P(None, "fsdp", None, "tensor", None),
    "blocks/attention/qkv/bias": P(None, None, "tensor", None),
    "blocks/attention/out/kernel": P(None, "tensor", None, "fsdp"),
    "blocks/attention/out/bias": P(),
    "blocks/mlp/up/kernel": P(None, "fsdp", "tensor"),
    "blocks/mlp/up/bias": P(None, "tensor"),
    "blocks/mlp/down/kernel": P(None, "tensor", "fsdp"),
    "blocks/mlp/down/bias": P(),
    "blocks/norm_1/scale": P(),
    "blocks/norm_1/bias": P(),
    "blocks/norm_2/scale": P(),
    "blocks/norm_2/bias": P(),
    "position_embedding": P(),
    "projection": P("fsdp", "tensor"),
  }
  for name, spec in tuple(expected.items()):
    if name.startswith("blocks/"):
      expected[f"last_{name.replace('blocks', 'block')}"] = P(*spec[1:])
  expected = {f"{tower}/{name}": e for tower in ("image", "text") for name, e in expected.items()}
  expected |= {
    "image/patch_embedding": P(None, None, None, "fsdp"),
    "image/class_embedding": P(),
    "text/token_embedding": P("tensor", "fsdp"),
  }
  for tower, name in (("image", "norm_pre"), ("image", "norm_post"), ("text", "norm_final")):
    expected |= {f"{tower}/{name}/scale": P(), f"{tower}/{name}/bias": P()}
  full = lambda spec, leaf: tuple(spec) + (None,) * (len(leaf.shape) - len(spec))
  shapes = by_name(vit_b_16)
  assert actual.keys() == expected.keys()
  for name, spec in actual.items():
    assert full(spec, shapes[name]) == full(expected[name], shapes[name]), name


def test_siglips_pooling_is_split_as_the_blocks_are():
  model = nnx.eval_shape(
    lambda: dual_encoder.create(
      "siglip_b_16", image_size=(384, 128), context_length=64, vocab_size=32000, rngs=nnx.Rngs(0)
    )
  )
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  layouts = by_name(sharding.parameters(sharding.create_mesh(1, 4, 2), params))
  pooling = {
    name.removeprefix("image/pooling/"): layout.spec
    for name, layout in layouts.items()
    if name.startswith("image/pooling/")
  }
  assert pooling["attention/qkv/kernel"] == P("fsdp", None, "tensor", None)
  assert pooling["attention/out/kernel"] == P("tensor", None, "fsdp")
  assert pooling["mlp/up/kernel"] == P("fsdp", "tensor")
  assert pooling["probe"] == P() and layouts["text/projection"].spec == P("fsdp", "tensor")
  assert layouts["image/patch_bias"].spec == layouts["text/projection_bias"].spec == P()


def test_every_large_parameter_is_split(vit_b_16):
  """Each of eight devices holds less than a sixth of the model: little of it is not split."""
  mesh = sharding.create_mesh(1, 4, 2)
  layouts, total, held = by_name(sharding.parameters(mesh, vit_b_16)), 0, 0
  for name, leaf in by_name(vit_b_16).items():
    total += np.prod(leaf.shape)
    held += np.prod(layouts[name].shard_shape(leaf.shape))
  assert total == pytest.approx(149.6e6, rel=1e-3)
  assert held < total / 6


@pytest.fixture(scope="module")
def with_lora(vit_b_16):
  """As `vit_b_16`, with LoRA's pairs."""
  pairs = lambda towers: lora.create(jax.random.key(0), towers, 8, tuple(lora.MATRICES))
  return vit_b_16 | {lora.NAME: jax.eval_shape(pairs, vit_b_16)}


def test_loras_pairs_are_split_as_their_kernels(with_lora):
  """A's inputs and B's outputs have the axes of the kernel; the rank is not split."""
  layouts = specs(sharding.create_mesh(2, 2, 2), with_lora)
  for place, input_axes in (("attention/qkv", 1), ("attention/out", 2), ("mlp/down", 1)):
    kernel = tuple(layouts[f"text/blocks/{place}/kernel"])
    a, b = (tuple(layouts[f"lora/text/blocks/{place}/{side}"]) for side in "ab")
    assert a == (*kernel[: 1 + input_axes], None)
    assert b == (None, None, *kernel[1 + input_axes :])


def test_every_rule_is_needed(with_lora):
  """Without any one of the rules, the shardings of the real model change."""
  mesh, rules = sharding.create_mesh(2, 2, 2), sharding.PARAMETER_RULES
  complete = specs(mesh, with_lora)
  for rule in rules:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sharding, "PARAMETER_RULES", tuple(r for r in rules if r is not rule))
      assert specs(mesh, with_lora) != complete, f"{rule} changes nothing"


def test_a_dimension_that_an_axis_does_not_divide_is_not_split():
  mesh = sharding.create_mesh(1, 2, 4)
  shapes = {
    "blocks/attention/qkv/kernel": (2, 5, 3, 8, 16),
    "blocks/attention/out/kernel": (2, 6, 16, 10),
    "token_embedding": (303, 32),
    "projection": (32, 6),
  }
  tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  assert specs(mesh, tree) == {
    "blocks/attention/qkv/kernel": P(None, None, None, "tensor", None),
    "blocks/attention/out/kernel": P(None, None, None, "fsdp"),
    "token_embedding": P(None, "fsdp"),
    "projection": P("fsdp", None),
  }


@pytest.mark.parametrize("second_moment", ["float32", "float16"])
def test_optimizer_state_is_split_as_the_parameters(vit_b_16, second_moment):
  mesh = sharding.create_mesh(2, 2, 2)
  tx = recipe.create_optimizer(num_epochs=2, steps_per_epoch=2, second_moment=second_moment)
  zeros = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), vit_b_16)
  state = jax.eval_shape(train_state.initializer(zeros, tx, num_pairs=100, feature_dim=512))
  layout = train_state.layout(mesh, state)
  params = {name: leaf.spec for name, leaf in by_name(layout.params).items()}
  assert any("tensor" in spec for spec in params.values())
  moments = {"mu": {}, "nu": {}}
  for name, leaf in by_name(layout.opt_state).items():
    for moment in moments:
      if f"/{moment}/" in name:
        moments[moment][name.split(f"/{moment}/")[1]] = leaf.spec
    if name.endswith("count"):
      assert leaf.spec == P()
  assert moments == {"mu": params, "nu": params}


def test_batch_is_split_over_data_and_fsdp_and_copied_over_tensor(rng):
  mesh = sharding.create_mesh(2, 2, 2)
  local = {"image": rng.normal(size=(8, 3, 2)).astype(np.float32), "index": np.arange(8)}
  placed = sharding.global_batch(mesh, local, 8)
  assert placed.keys() == local.keys()
  for name, value in local.items():
    np.testing.assert_array_equal(placed[name], value)
    assert placed[name].sharding == sharding.batch(mesh)
    for shard in placed[name].addressable_shards:
      data, fsdp, _ = np.argwhere(mesh.devices == shard.device)[0]
      first = 2 * (2 * data + fsdp)
      np.testing.assert_array_equal(shard.data, value[first : first + 2])


def test_bank_rows_are_split_over_every_device():
  mesh = sharding.create_mesh(2, 2, 2)
  rows = jax.device_put(np.arange(16), sharding.bank_rows(mesh))
  assert sorted(shard.data.tolist() for shard in rows.addressable_shards) == [
    [2 * device, 2 * device + 1] for device in range(8)
  ]
  whole = jax.device_put(np.arange(16), sharding.replicated(mesh))
  assert all(len(shard.data) == 16 for shard in whole.addressable_shards)


def test_path_name():
  tree = {"image": {"blocks": [0, {"kernel": 1}]}}
  assert list(by_name(tree)) == ["image/blocks/0", "image/blocks/1/kernel"]
