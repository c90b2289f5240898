"""Reads and verifies the arrays of a checkpoint, and places them on a mesh.

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

from dgia_jax import bucket, older_names, sharding
from dgia_jax.errors import UserError
from dgia_jax.method import train_state
from dgia_jax.training import array_digests, checkpoint_record
from dgia_jax.training.checkpoint_record import CheckpointRecord

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


def read(
  folder: bucket.AnyPath, record: CheckpointRecord, only: Sequence[str] = (), verify: bool = True
) -> dict[str, np.ndarray]:
  """Reads the arrays of a checkpoint into host memory and verifies them.

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
  if record.checksums is None:
    with _readable(folder):
      names = list(named(ocp.PyTreeCheckpointHandler().metadata(folder / STATE).tree))
  else:
    names = list(record.checksums)
  names = [name for name in names if not only or name.split("/")[0] in only]
  arrays = _read_arrays(folder, names)
  if verify and record.checksums is not None:
    sums = array_digests.checksums(arrays)
    wrong = [name for name in names if sums[name] != record.checksums[name]]
    if wrong:
      raise checkpoint_record.damaged(
        folder, f"{len(wrong)} of {len(names)} arrays differ from the saved ones: {wrong[0]}"
      )
  return older_names.current_arrays(arrays)


def _read_arrays(folder: bucket.AnyPath, names: Sequence[str]) -> dict[str, np.ndarray]:
  """Reads arrays in parallel."""
  kvstore = {"driver": "ocdbt", "base": bucket.tensorstore_base(folder / STATE)}
  specs = {
    name: {"driver": "zarr", "kvstore": kvstore | {"path": name.replace("/", ".") + "/"}}
    for name in names
  }
  arrays = {}
  with _readable(folder):
    opened = {name: tensorstore.open(spec, open=True) for name, spec in specs.items()}
    reads = {name: store.result().read() for name, store in opened.items()}
    for name, future in reads.items():
      arrays[name] = future.result()
  return arrays


def place(
  folder: bucket.AnyPath,
  arrays: Mapping[str, np.ndarray],
  mesh: jax.sharding.Mesh,
  abstract_state: train_state.TrainState,
) -> train_state.TrainState:
  """Arranges the arrays of a checkpoint as a TrainState on a mesh; every process must call this.

  Raises:
    UserError: the checkpoint belongs to another model or dataset.
  """
  expected = {name: (leaf.shape, leaf.dtype) for name, leaf in named(abstract_state).items()}
  saved = {name: (array.shape, array.dtype) for name, array in arrays.items()}
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
