"""Meshes smaller than all the devices of the tests."""

import math

import jax

from dgia_jax import sharding


def mesh_of(*shape: int) -> jax.sharding.Mesh:
  """A mesh of the given shape (data, fsdp, tensor) on the first devices."""
  return sharding.create_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
