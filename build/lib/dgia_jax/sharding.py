"""The mesh, its axis names, and which array lies where. Nothing else writes an axis name.

Three axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits
the parameters inside a layer. The batch is split over data x fsdp, the memory bank's rows over all
devices, parameters and optimiser state over fsdp and tensor by the rules below. A dimension that
an axis does not divide stays whole, so every rule holds for every mesh and every model size.
"""

import math
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dgia_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BANK_AXES = AXES

# (pattern on the parameter's path, axes of its LAST dimensions); leading dimensions, such as the
# stack of layers, stay whole. First match wins; what matches nothing is copied to every device.
PARAMETER_RULES = (
  (r"qkv/kernel$", ("fsdp", None, "tensor", None)),  # (W, 3, heads, head_dim)
  (r"qkv/bias$", (None, "tensor", None)),
  (r"out/kernel$", ("tensor", None, "fsdp")),  # (heads, head_dim, W)
  (r"up/kernel$", ("fsdp", "tensor")),  # (W, 4W)
  (r"up/bias$", ("tensor",)),
  (r"down/kernel$", ("tensor", "fsdp")),  # (4W, W)
  (r"token_embedding$", ("tensor", "fsdp")),  # (vocabulary, W)
  (r"projection$", ("fsdp", "tensor")),  # (W, D)
  (r"patch_embedding$", ("fsdp",)),  # (P, P, 3, W)
)


def create_mesh(data=-1, fsdp=1, tensor=1, devices=None):
  """Arranges the devices of all processes as (data, fsdp, tensor).

  Args:
    data, fsdp, tensor: sizes; at most one may be -1, "all that are left".
    devices: defaults to all devices.

  Returns:
    A `jax.sharding.Mesh` with compiler-driven (Auto) axes.

  Raises:
    UserError: when the sizes do not multiply to the number of devices, or these are of several TPU
      slices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  sizes = [data, fsdp, tensor]
  said = f"mesh.data={data} mesh.fsdp={fsdp} mesh.tensor={tensor}"
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise UserError(f"{said}: sizes are positive, and one of them may be -1 (all that are left)")
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes:
    sizes[sizes.index(-1)] = count // known
  if math.prod(sizes) != count:
    raise UserError(
      f"{said} does not fit {count} device(s): the product must be {count}; "
      "set mesh.data=-1 to use what is left"
    )
  slices = {getattr(device, "slice_index", 0) for device in devices}
  if devices[0].platform == "tpu" and len(slices) > 1:
    raise UserError(f"{said}: these are devices of several TPU slices; a run uses one slice")
  # `jax.make_mesh` splits a physical axis (an fsdp of 8 on a torus of 16 x 16) on v5e only.
  placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh):
  """Into how many parts the batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh):
  """Layout of what every device holds whole."""
  return NamedSharding(mesh, P())


def batch(mesh):
  """Layout of arrays whose first dimension is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def batch_parts(mesh):
  """Layout of a batch cut into parts, (parts, rows, ...): each part lies as the batch does."""
  return NamedSharding(mesh, P(None, BATCH_AXES))


def bank_rows(mesh):
  """Layout of the memory bank: rows over every device of the mesh."""
  return NamedSharding(mesh, P(BANK_AXES))


def path_name(path):
  """A tree path as text: "image/blocks/mlp/up/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _parameter_spec(name, shape, mesh):
  for pattern, axes in PARAMETER_RULES:
    if re.search(pattern, name) and len(shape) >= len(axes):
      axes = (None,) * (len(shape) - len(axes)) + axes
      fits = lambda size, axis: axis if axis and size % mesh.shape[axis] == 0 else None
      return P(*(fits(size, axis) for size, axis in zip(shape, axes, strict=True)))
  return P()


def parameters(mesh, tree):
  """Layouts of a tree of parameters, or of optimiser state that repeats the parameters' paths.

  Args:
    mesh: the mesh.
    tree: arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The same tree of `NamedSharding`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, _parameter_spec(path_name(path), leaf.shape, mesh)),
    tree,
  )


def gathered(mesh, params):
  """Brings parameters together over fsdp for computing; over tensor they stay apart. To be traced.

  The gradient goes back the other way, summed and split over fsdp. Without this the compiler may
  split products over fsdp instead of the batch, and sum activations between devices.

  Args:
    mesh: the mesh.
    params: tree of arrays.

  Returns:
    The same tree.
  """
  if mesh.shape["fsdp"] == 1:
    return params

  def together(layout):
    return NamedSharding(mesh, P(*(None if axis == "fsdp" else axis for axis in layout.spec)))

  layouts = jax.tree.map(together, parameters(mesh, params))
  return jax.lax.with_sharding_constraint(params, layouts)


def batch_rows(mesh, size):
  """Rows of a global batch that the devices of this process hold.

  Processes whose devices differ only along `tensor` hold the same rows.

  Args:
    mesh: the mesh.
    size: rows of the global batch.

  Returns:
    (n,) int, ascending.
  """
  parts = batch(mesh).addressable_devices_indices_map((size,)).values()
  return np.unique(np.concatenate([np.arange(size)[part] for part in parts]))


def place(tree, layouts):
  """Puts host arrays that every process holds whole onto the devices, each its own part."""
  put = lambda x, layout: jax.make_array_from_callback(np.shape(x), layout, lambda part: x[part])
  return jax.tree.map(put, tree, layouts)


def global_batch(mesh, local_batch, size):
  """Joins every process's rows into global arrays laid out over the batch axes.

  Args:
    mesh: the mesh.
    local_batch: dict of numpy arrays, the rows `batch_rows` of the global batch.
    size: rows of the global batch.

  Returns:
    The same dict of global `jax.Array`s.
  """
  layout = batch(mesh)
  if jax.process_count() == 1:
    return jax.device_put(local_batch, layout)
  rows = batch_rows(mesh, size)

  def join(local):
    def part(index):
      start, stop, _ = index[0].indices(size)
      first = np.searchsorted(rows, start)
      return local[first : first + stop - start]

    return jax.make_array_from_callback((size, *local.shape[1:]), layout, part)

  return jax.tree.map(join, local_batch)
