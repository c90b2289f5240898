"""Reads and verifies the arrays of a checkpoint, whole on the host or in parts on a mesh.

Orbax would read them in an event loop. If one of them is damaged it closes the loop while others
are being read, and each of these then prints a traceback. Hence TensorStore, on which Orbax builds.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from dgia_jax import bucket, distributed, older_names, sharding
from dgia_jax.errors import UserError
from dgia_jax.method import train_state
from dgia_jax.training import array_digests, checkpoint_record
from dgia_jax.training.checkpoint_record import CheckpointRecord, DamagedCheckpointError

STATE = "state"  # name of the item inside a checkpoint


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by path: "params/image/projection"."""
  return {
    sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The reverse of `named`, for a tree of dicts."""
  tree: dict[str, Any] = {}
  for name, array in arrays.items():
    *parents, last = name.split("/")
    functools.reduce(lambda level, parent: level.setdefault(parent, {}), parents, tree)[last] = (
      array
    )
  return tree


def restore(
  folder: bucket.AnyPath,
  mesh: jax.sharding.Mesh,
  abstract_state: train_state.TrainState,
  verify: bool = True,
) -> tuple[CheckpointRecord, train_state.TrainState]:
  """Reads a checkpoint onto a mesh. Every process must call this, and reads its own part only.

  Args:
    folder: of the checkpoint.
    mesh: may differ from the one that the checkpoint was saved on.
    abstract_state: TrainState of `jax.ShapeDtypeStruct`s.
    verify: compare the arrays with their checksums.

  Returns:
    The record and the state.

  Raises:
    DamagedCheckpointError: in every process, if one cannot read its part, or the arrays differ from
      the saved ones.
    UserError: the checkpoint belongs to another model or dataset.
  """
  with _failing_in_every_process(folder):
    record = checkpoint_record.read(folder)
    state = _read_onto(folder, record, mesh, abstract_state, verify)
  arrays = named(state)
  # Other names than today's were verified before they were changed.
  if verify and record.checksums is not None and record.checksums.keys() == arrays.keys():
    # Of an array that every process holds whole, each computes the checksum of its own copy.
    with _failing_in_every_process(folder):
      _verify(folder, arrays, record.checksums)
  return record, state


@contextlib.contextmanager
def _failing_in_every_process(folder: bucket.AnyPath) -> Iterator[None]:
  """Raises DamagedCheckpointError in every process if the block does in one of them."""
  damage = ""  # as text: an error that is kept keeps the arrays of its traceback in memory
  try:
    yield
  except DamagedCheckpointError as error:
    damage = str(error)
  failed = distributed.first_that(bool(damage))
  if damage:
    raise DamagedCheckpointError(damage)
  if failed is not None:
    raise checkpoint_record.damaged(folder, f"process {failed} cannot read it")


def _read_onto(
  folder: bucket.AnyPath,
  record: CheckpointRecord,
  mesh: jax.sharding.Mesh,
  abstract_state: train_state.TrainState,
  verify: bool,
) -> train_state.TrainState:
  """The state on a mesh; not verified yet, unless the arrays have other names than today's."""
  layout = train_state.layout(mesh, abstract_state)
  with _readable(folder):
    stores = _open(folder, _names(folder, record))
  saved = {name: (store.shape, store.dtype.numpy_dtype) for name, store in stores.items()}
  if saved != _shapes(abstract_state):
    # An earlier release, another model or damage: all of it must be read to know which.
    return place(folder, read(folder, record, verify=verify), mesh, abstract_state)
  with _readable(folder):
    arrays = _read_parts(stores, named(layout))
  return jax.tree_util.tree_map_with_path(
    lambda path, _: arrays[sharding.path_name(path)], abstract_state
  )


def _read_parts(
  stores: Mapping[str, tensorstore.TensorStore], layouts: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
  """Reads the parts of arrays that this process's devices hold, in parallel."""
  bounds = lambda index: tuple((part.start, part.stop) for part in index)  # slices have no hash
  reads: dict[str, dict] = {}
  for name, store in stores.items():
    indices = layouts[name].addressable_devices_indices_map(store.shape).values()
    parts = {bounds(index): index for index in indices}
    reads[name] = {part: store[index].read() for part, index in parts.items()}
  return {
    name: jax.make_array_from_callback(
      store.shape,
      layouts[name],
      lambda index, futures=reads[name]: futures[bounds(index)].result(),
    )
    for name, store in stores.items()
  }


def read(
  folder: bucket.AnyPath, record: CheckpointRecord, only: Sequence[str] = (), verify: bool = True
) -> dict[str, np.ndarray]:
  """Reads whole arrays of a checkpoint into host memory and verifies them.

  Takes part in no exchange between processes, so a single process may call it.

  Args:
    folder: of the checkpoint.
    record: its record.
    only: names of the parts of the state to read; empty for all.
    verify: compare the arrays with their checksums.

  Returns:
    The arrays by path.

  Raises:
    DamagedCheckpointError: an array cannot be read or differs from the saved one.
  """
  with _readable(folder):
    names = _names(folder, record)
    names = [name for name in names if not only or name.split("/")[0] in only]
    reads = {name: store.read() for name, store in _open(folder, names).items()}
    arrays = {name: future.result() for name, future in reads.items()}
  if verify and record.checksums is not None:
    _verify(folder, arrays, record.checksums)
  return older_names.current_arrays(arrays)


def _names(folder: bucket.AnyPath, record: CheckpointRecord) -> list[str]:
  """The names of a checkpoint's arrays."""
  if record.checksums is not None:
    return list(record.checksums)
  return list(named(ocp.PyTreeCheckpointHandler().metadata(folder / STATE).tree))


def _open(folder: bucket.AnyPath, names: Sequence[str]) -> dict[str, tensorstore.TensorStore]:
  """Opens arrays in parallel, without reading them."""
  kvstore = {"driver": "ocdbt", "base": bucket.tensorstore_base(folder / STATE)}
  specs = {
    name: {"driver": "zarr", "kvstore": kvstore | {"path": name.replace("/", ".") + "/"}}
    for name in names
  }
  opened = {name: tensorstore.open(spec, open=True) for name, spec in specs.items()}
  return {name: store.result() for name, store in opened.items()}


def _verify(
  folder: bucket.AnyPath,
  arrays: Mapping[str, jax.Array | np.ndarray],
  expected: Mapping[str, str],
) -> None:
  """Raises DamagedCheckpointError if the checksums of arrays are not the expected ones."""
  sums = array_digests.checksums(arrays)
  wrong = [name for name in arrays if sums[name] != expected[name]]
  if wrong:
    raise checkpoint_record.damaged(
      folder, f"{len(wrong)} of {len(arrays)} arrays differ from the saved ones: {wrong[0]}"
    )


def place(
  folder: bucket.AnyPath,
  arrays: Mapping[str, np.ndarray],
  mesh: jax.sharding.Mesh,
  abstract_state: train_state.TrainState,
) -> train_state.TrainState:
  """Arranges whole arrays of a checkpoint as a TrainState on a mesh; every process must call this.

  Raises:
    UserError: the checkpoint belongs to another model or dataset.
  """
  expected, saved = _shapes(abstract_state), _shapes(arrays)
  names = saved.keys() | expected.keys()
  wrong = sorted(name for name in names if saved.get(name) != expected.get(name))
  if wrong:
    describe = lambda kind: "absent" if kind is None else f"{kind[1]} {kind[0]}"
    raise UserError(
      f"{folder}: cannot be restored into this config's model or dataset: {len(wrong)} arrays"
      f" differ, such as {wrong[0]}: {describe(saved.get(wrong[0]))} in the checkpoint,"
      f" {describe(expected.get(wrong[0]))} in this run; give the config that the run started with"
    )
  host_state = jax.tree_util.tree_map_with_path(
    lambda path, _: arrays[sharding.path_name(path)], abstract_state
  )
  return sharding.place(host_state, train_state.layout(mesh, abstract_state))


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Shape and type of the leaves of a tree by path."""
  return {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in named(tree).items()}


@contextlib.contextmanager
def _readable(folder: bucket.AnyPath) -> Iterator[None]:
  """Turns any failure to read into a `DamagedCheckpointError`."""
  try:
    yield
  except Exception as error:  # damaged files can fail in any way
    if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
      raise UserError(f"{folder}: cannot be read ({error})") from error
    bucket.raise_if_unreachable(folder, error)
    raise checkpoint_record.damaged(folder, f"{STATE}: {error}") from error
