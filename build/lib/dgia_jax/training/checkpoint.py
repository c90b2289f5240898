"""What is saved, and how it comes back on any mesh. No other module saves or restores.

A checkpoint holds the TrainState (parameters, optimiser, both banks, step) and a small record: the
run's data position and its best score so far. The order of pairs is a pure function of seed and
step, so the data position is the number of batches consumed, which any number of processes can
resume. Checkpoints are written in the background into a temporary folder that is renamed when it
is complete: whatever kills the process, the newest complete one is found again.
"""

import hashlib
import logging
import pathlib

import jax
import jax.experimental.multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.method import train_state

FOLDER = "checkpoints"
# Of Orbax's warnings: most checkpoints are saved unevaluated, some are opened to read alone, and a
# file of its own that it looks for is not among those it writes here.
_EXPECTED = ("tracked_metric", "read_only=True", "directory is read only", "_CHECKPOINT_METADATA")


class Checkpoints:
  """The checkpoints of one run: the `keep` newest, and the best by its selection score."""

  def __init__(self, workdir, keep=2, read_only=False):
    """Opens `workdir`/checkpoints.

    Args:
      workdir: folder of the run.
      keep: newest checkpoints to keep, besides the best.
      read_only: nothing is written or deleted, so the run may be training at the moment. Otherwise
        the folder is made when absent, and leftovers of an interrupted save are removed.

    Raises:
      UserError: a checkpoint's score cannot be read.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics["score"],
          n=1,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    self._folder = pathlib.Path(workdir).absolute() / FOLDER
    try:
      self._manager = _open(
        self._folder,
        item_names=("state", "record"),
        preservation_policy=None if read_only else policy,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        enable_async_checkpointing=True,
        read_only=read_only,
      )
    except (ValueError, KeyError, OSError) as error:
      reason = " ".join(str(error).split())[:300]
      raise UserError(
        f"{self._folder}: a checkpoint in it is damaged ({reason}); delete that one"
      ) from error

  def latest(self):
    """Step of the newest complete checkpoint, or None."""
    return self._manager.latest_step()

  def best(self):
    """Step of the checkpoint with the highest score, or None."""
    return self._manager.best_step()

  def save(self, state, record, score=None):
    """Starts writing a checkpoint in the background; the state may be donated right after.

    Args:
      state: TrainState of global arrays.
      record: JSON-serialisable dict; holds `data_position`, the batches consumed.
      score: what the best checkpoint is chosen by (higher is better), or None when this
        checkpoint was not evaluated.
    """
    step = int(jax.device_get(state.step))
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
      metrics=None if score is None else {"score": float(score)},
    )

  def restore(self, step, mesh, abstract_state):
    """Reads a checkpoint onto a mesh, which may differ from the one it was saved on.

    Args:
      step: which checkpoint.
      mesh: the mesh to lay the state out on.
      abstract_state: TrainState of `jax.ShapeDtypeStruct`s.

    Returns:
      The TrainState and its record.

    Raises:
      UserError: when the checkpoint does not fit the config's model or dataset, or is damaged.
    """
    target = jax.tree.map(
      lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
      abstract_state,
      train_state.layout(mesh, abstract_state),
    )
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
        ),
      )
    except (ValueError, KeyError, OSError) as error:
      reason = " ".join(str(error).split())[:300]
      raise UserError(
        f"{self._folder / str(step)}: cannot be restored into this config's model: {reason}; "
        "delete this folder to go on from the one before"
      ) from error
    return restored["state"], restored["record"]

  def wait(self):
    """Returns when everything saved so far lies complete on disk; raises what went wrong."""
    self._manager.wait_until_finished()

  def close(self):
    """Finishes what is being written and stops the background threads."""
    self._manager.close()


def _open(folder, item_names=None, **options):
  """Orbax's manager of a folder, without its warnings of what is meant to be so."""
  logging.getLogger("absl").addFilter(_is_news)
  options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["score"], **options)
  return ocp.CheckpointManager(folder, item_names=item_names, options=options)


def _is_news(log_record):
  """False for Orbax's warnings of what is meant to be so."""
  return not any(words in log_record.getMessage() for words in _EXPECTED)


def steps_saved(workdir):
  """Steps of the complete checkpoints under `workdir`, ascending; [] when there are none."""
  folder = pathlib.Path(workdir) / FOLDER
  if not folder.is_dir():
    return []
  return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def restore_params(workdir, choice="best"):
  """The parameters of a checkpoint alone, on the host; needs no mesh, config or dataset.

  Args:
    workdir: folder of a run, which may be training at the moment; nothing is written.
    choice: "best", which falls back to the last when none was scored, or "last".

  Returns:
    Step of the checkpoint, and a nested dict of numpy arrays.

  Raises:
    UserError: there is no complete checkpoint, or it is damaged.
  """
  folder = pathlib.Path(workdir).absolute() / FOLDER
  if not steps_saved(workdir):
    raise UserError(f"{folder}: holds no complete checkpoint; train first")
  try:
    with _open(folder, read_only=True) as manager:
      last, best = manager.latest_step(), manager.best_step()
    step = best if choice == "best" and best is not None else last
    with ocp.PyTreeCheckpointer() as reader:
      path = folder / str(step) / "state"
      item = {"params": reader.metadata(path).item_metadata.tree["params"]}
      how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
      restored = reader.restore(
        path, args=ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
      )
  except (ValueError, KeyError, OSError) as error:
    reason = " ".join(str(error).split())[:300]
    raise UserError(f"{folder}: cannot be read: {reason}") from error
  return step, restored["params"]


def digest(state, num_pairs):
  """SHA-256 over parameters and banks, sorted by name: equal digests mean bit-identical runs.

  Args:
    state: TrainState.
    num_pairs: bank rows that belong to training pairs; padding rows are left out.

  Returns:
    64 hexadecimal digits.
  """
  parts = {"params": state.params, "bank": state.bank}
  leaves = {
    sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(parts)
  }
  total = hashlib.sha256()
  for name in sorted(leaves):
    value = leaves[name]
    if not value.is_fully_addressable:
      value = jax.experimental.multihost_utils.process_allgather(value, tiled=True)
    value = np.ascontiguousarray(jax.device_get(value))
    if name.startswith("bank"):
      value = value[:num_pairs]
    total.update(f"{name} {value.dtype} {value.shape}".encode())
    total.update(value.tobytes())
  return total.hexdigest()
