"""A layout constraint changes no number and sends nothing between devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dgia_jax import sharding
from dgia_jax.dry_run import hlo_collectives
from dgia_jax.models.row_major import row_major


def loss(x: jax.Array, set_layout) -> jax.Array:
  return jnp.sum(jnp.sin(set_layout(x * 2.0)) * x)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_value_and_gradient_are_those_without_it(num_devices):
  mesh = sharding.create_mesh(data=num_devices, devices=jax.devices()[:num_devices])
  x = np.random.default_rng(0).normal(size=(16, 5, 6)).astype(np.float32)
  placed = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))
  gradient_of = lambda set_layout: jax.jit(jax.value_and_grad(lambda x: loss(x, set_layout)))
  for ours, plain in zip(
    gradient_of(row_major)(placed), gradient_of(lambda x: x)(placed), strict=True
  ):
    np.testing.assert_array_equal(ours, plain)


def test_devices_keep_their_own_parts():
  mesh = sharding.create_mesh(data=4, fsdp=2)
  x = jax.ShapeDtypeStruct(
    (16, 5, 6), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp")))
  )
  compiled = jax.jit(jax.grad(lambda x: loss(x, row_major))).lower(x).compile()
  assert not hlo_collectives.collectives(compiled.as_text())
  assert compiled.output_shardings.is_equivalent_to(x.sharding, 3)
