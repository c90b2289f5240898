"""The mesh, its axis names, and the sharding of every array. No other module uses an axis name.

There are three axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor`
splits the parameters inside a layer. The batch is split over data x fsdp, the rows of the memory
bank over all devices, parameters and optimizer state over fsdp and tensor by the rules below. A
dimension that an axis does not divide is not split, so the rules fit every mesh and model size.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dgia_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BANK_AXES = AXES

# (pattern on the parameter's path, axes of its LAST dimensions). Leading dimensions, such as the
# stack of layers, are not split. The first match wins; a parameter without a match is replicated.
PARAMETER_RULES = (
  (r"qkv/kernel$", ("fsdp", None, "tensor", None)),  # (W, 3, heads, head_dim)
  (r"qkv/bias$", (None, "tensor", None)),
  (r"out/kernel$", ("tensor", None, "fsdp")),  # (heads, head_dim, W)
  (r"up/kernel$", ("fsdp", "tensor")),  # (W, 4W)
  (r"up/bias$", ("tensor",)),
  (r"down/kernel$", ("tensor", "fsdp")),  # (4W, W)
  # LoRA's pairs, whose products have the shapes above.
  (r"lora/.*qkv/b$", (None, None, "tensor", None)),  # (rank, 3, heads, head_dim)
  (r"lora/.*out/a$", ("tensor", None, None)),  # (heads, head_dim, rank)
  (r"lora/.*up/b$", (None, "tensor")),  # (rank, 4W)
  (r"lora/.*down/a$", ("tensor", None)),  # (4W, rank)
  (r"lora/.*(qkv|up)/a$", ("fsdp", None)),  # (W, rank)
  (r"lora/.*(out|down)/b$", (None, "fsdp")),  # (rank, W)
  (r"token_embedding$", ("tensor", "fsdp")),  # (vocabulary, W)
  (r"projection$", ("fsdp", "tensor")),  # (W, D)
  (r"patch_embedding$", ("fsdp",)),  # (P, P, 3, W)
)


def local_mesh() -> Mesh:
  """All devices of this process, along the batch."""
  return create_mesh(devices=jax.local_devices())


def create_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """Arranges devices as (data, fsdp, tensor), with compiler-driven (Auto) axes.

  Args:
    data: size of this axis; at most one size may be -1, which means all remaining devices.
    fsdp: size of this axis.
    tensor: size of this axis.
    devices: by default, all devices of all processes.

  Raises:
    UserError: the product of the sizes is not the number of devices, or the devices belong to
      several TPU slices.
  """
  devices = jax.devices() if devices is None else devices
  count, sizes = len(devices), [data, fsdp, tensor]
  settings = f"mesh.data={data} mesh.fsdp={fsdp} mesh.tensor={tensor}"
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise UserError(
      f"{settings}: sizes are positive, and one of them may be -1 (all remaining devices)"
    )
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes:
    sizes[sizes.index(-1)] = count // known
  if math.prod(sizes) != count:
    raise UserError(
      f"{settings} does not fit {count} device(s): the product must be {count};"
      f" {_advice(data, fsdp, tensor, count)}"
    )
  slices = {getattr(device, "slice_index", 0) for device in devices}
  if devices[0].platform == "tpu" and len(slices) > 1:
    raise UserError(f"{settings}: these are devices of several TPU slices; a run uses one slice")
  # `jax.make_mesh` splits a physical axis (an fsdp of 8 on a torus of 16 x 16) on v5e only.
  arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)


def _advice(data: int, fsdp: int, tensor: int, count: int) -> str:
  """How to correct sizes that do not fit `count` devices."""
  if fsdp > 0 and tensor > 0 and count % (fsdp * tensor) == 0:
    return "set mesh.data=-1 to use all remaining devices"
  given = zip(AXES, (data, fsdp, tensor), strict=True)
  wrong = " x ".join(f"mesh.{axis}" for axis, size in given if size > 1)
  return f"lower {wrong} to a divisor of {count}"


def batch_shards(mesh: Mesh) -> int:
  """The number of parts that the batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, P())


def batch(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first dimension is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def batch_parts(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch cut into parts, (parts, rows, ...): each part is split as the batch."""
  return NamedSharding(mesh, P(None, BATCH_AXES))


def bank_rows(mesh: Mesh) -> NamedSharding:
  """The sharding of the memory bank: rows over all devices of the mesh."""
  return NamedSharding(mesh, P(BANK_AXES))


def path_name(path: Sequence[Any]) -> str:
  """A tree path as text: "image/blocks/mlp/up/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _parameter_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  for pattern, axes in PARAMETER_RULES:
    if re.search(pattern, name) and len(shape) >= len(axes):
      axes = (None,) * (len(shape) - len(axes)) + axes
      fits = lambda size, axis: axis if axis and size % mesh.shape[axis] == 0 else None
      return P(*(fits(size, axis) for size, axis in zip(shape, axes, strict=True)))
  return P()


def parameters(mesh: Mesh, tree: Any) -> Any:
  """The shardings of parameters, or of optimizer state whose paths end in those of parameters.

  Args:
    mesh: the mesh.
    tree: arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    A tree of `NamedSharding`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, _parameter_spec(path_name(path), leaf.shape, mesh)),
    tree,
  )


def gathered(mesh: Mesh, params: Any) -> Any:
  """Gathers parameters over fsdp before they are used; call it while tracing.

  They stay split over tensor. The gradient takes the reverse way: summed and split over fsdp.
  Without this constraint the compiler may split matrix products over fsdp instead of the batch, and
  sum activations between devices.
  """
  if mesh.shape["fsdp"] == 1:
    return params

  def without_fsdp(layout: NamedSharding) -> NamedSharding:
    return NamedSharding(mesh, P(*(None if axis == "fsdp" else axis for axis in layout.spec)))

  layouts = jax.tree.map(without_fsdp, parameters(mesh, params))
  return jax.lax.with_sharding_constraint(params, layouts)


def batch_rows(mesh: Mesh, size: int) -> np.ndarray:
  """The rows of a global batch of `size` rows that this process's devices hold, ascending.

  Processes whose devices differ only along `tensor` hold the same rows.
  """
  parts = batch(mesh).addressable_devices_indices_map((size,)).values()
  return np.unique(np.concatenate([np.arange(size)[part] for part in parts]))


def device_bytes(tree: Any, layouts: Any) -> int:
  """Bytes of a tree of arrays, or of their shapes, on one device."""
  size = lambda leaf, layout: math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(jax.tree.leaves(jax.tree.map(size, tree, layouts)))


def place(tree: Any, layouts: Any) -> Any:
  """Copies host arrays, which every process holds whole, to the devices: to each its own part."""
  put = lambda x, layout: jax.make_array_from_callback(np.shape(x), layout, lambda part: x[part])
  return jax.tree.map(put, tree, layouts)


def global_batch(mesh: Mesh, local_batch: Any, size: int) -> Any:
  """Joins the rows of all processes into global arrays that are split as the batch.

  Args:
    mesh: the mesh.
    local_batch: NumPy array or tree of arrays, with the rows `batch_rows` of the global batch.
    size: rows of the global batch.
  """
  layout = batch(mesh)
  if jax.process_count() == 1:
    return jax.device_put(local_batch, layout)
  rows = batch_rows(mesh, size)

  def join(local: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(size)
      first = np.searchsorted(rows, start)
      return local[first : first + stop - start]

    return jax.make_array_from_callback((size, *local.shape[1:]), layout, part)

  return jax.tree.map(join, local_batch)
