"""Saves and restores checkpoints, on any mesh. No other module does.

A checkpoint holds the TrainState (parameters, optimizer state, both banks, step) and a record: the
run's data position and its best score so far, and the checksum of every array. The order of pairs
is a pure function of seed and step, so the data position is the number of batches consumed, from
which any number of processes can resume. Checkpoints are written in the background into a temporary
folder that is renamed when it is complete, so the newest complete one survives a kill at any time.
A bucket cannot rename folders: there a file that Orbax writes last marks a complete checkpoint.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from dgia_jax import bucket, cli, distributed, full_disk, remote, user_files
from dgia_jax.errors import UserError
from dgia_jax.method import scored_weights, train_state, trainable
from dgia_jax.training import (
  array_digests,
  checkpoint_arrays,
  checkpoint_manager,
  checkpoint_record,
)
from dgia_jax.training.checkpoint_arrays import STATE
from dgia_jax.training.checkpoint_record import CheckpointRecord, DamagedCheckpointError

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
_COMPLETE_IN_BUCKET = "commit_success.txt"

Notify = Callable[[str], None]


class Checkpoints:
  """The checkpoints of one run: the `keep` newest, and the best by its selection score."""

  def __init__(
    self,
    workdir: pathlib.Path | str,
    keep: int = 2,
    read_only: bool = False,
    verify: bool = True,
    notify: Notify = cli.print_to_stderr,
  ):
    """Opens `workdir`/checkpoints.

    Args:
      workdir: working directory of the run; checkpoints of a copy are those of `remote.origin`.
      keep: number of newest checkpoints to keep, besides the best.
      read_only: nothing is written or moved, so the run may be training at the same time.
      verify: compare every restored array with its checksum.
      notify: receives one line about every damaged checkpoint that is moved away.
    """
    self._workdir = _workdir_of_checkpoints(workdir)
    self._folder = self._workdir / FOLDER
    self._keep, self._read_only, self._verify, self._notify = keep, read_only, verify, notify
    self._manager = None  # of Orbax; created by the first save
    self._scores: dict[int, float] = {}  # of the kept checkpoints, once there is a manager
    self._state_bytes = 0

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return max(steps_saved(self._workdir), default=None)

  def best(self) -> int | None:
    """Step of the checkpoint with the highest score; of equal scores, the later.

    Raises:
      UserError: the score of a checkpoint cannot be read.
    """
    return _best(self._folder, steps_saved(self._workdir))

  def save(self, state: train_state.TrainState, record: dict[str, Any]) -> None:
    """Starts writing a checkpoint in the background; the state may be donated afterwards.

    Args:
      state: global arrays.
      record: JSON-serializable; holds `data_position`, the number of batches consumed.

    Raises:
      UserError: the disk is full, or an earlier checkpoint could not be written.
    """
    step = int(jax.device_get(state.step))
    arrays = checkpoint_arrays.named(state)
    self._state_bytes = sum(array.nbytes for array in arrays.values())
    sealed = checkpoint_record.to_json(
      CheckpointRecord(step, record, score=None, checksums=array_digests.checksums(arrays))
    )
    with self._writing():
      if self._manager is None:
        self._manager = self._create_manager()
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{
            STATE: ocp.args.StandardSave(state),
            checkpoint_record.RECORD: ocp.args.JsonSave(sealed),
          }
        ),
      )

  def add_score(self, step: int, record: dict[str, Any], score: float) -> None:
    """Adds what an evaluation found to a saved checkpoint; every process must call this.

    Waits until that is on disk, and removes checkpoints that are no longer to be kept.

    Args:
      step: of the checkpoint.
      record: replaces the record that it was saved with.
      score: selects the best checkpoint; higher is better.

    Raises:
      UserError: the disk is full, or the checkpoint could not be written.
    """
    self.wait()
    with self._writing():
      if self._manager is None:
        self._manager = self._create_manager()
      if jax.process_index() == 0:
        checkpoint_record.amend(self._folder / str(step), record, score)
      distributed.wait_for_all()  # a process that restores this checkpoint must read the new record
      self._scores[step] = score
      steps = list(self._manager.all_steps())
      kept = checkpoint_manager.kept(steps, self._keep, self._scores)
      for superseded in sorted(set(steps) - kept):
        self._manager.delete(superseded)

  def restore_newest(
    self, mesh: jax.sharding.Mesh, abstract_state: train_state.TrainState
  ) -> tuple[int, train_state.TrainState, dict[str, Any]] | None:
    """Restores the newest intact checkpoint; moves damaged newer ones to `workdir`/damaged.

    Returns:
      Its step, state and record, or None if there is no checkpoint.

    Raises:
      UserError: the checkpoint does not fit the config's model or dataset, or none is intact.
    """
    damaged: dict[int, str] = {}  # the errors as text, because their frames hold arrays
    while (step := self._newest_besides(damaged)) is not None:
      try:
        restored = self.restore(step, mesh, abstract_state)
      except DamagedCheckpointError as error:
        damaged[step] = str(error)
        continue
      distributed.decided_by_first_process(functools.partial(self._set_aside, damaged, step))
      return step, *restored
    if damaged:
      raise UserError(
        f"{damaged[max(damaged)]}, and no other checkpoint in {self._folder} is intact; move"
        f" {self._folder} away to train from the start"
      )
    return None

  def _newest_besides(self, steps: Container[int]) -> int | None:
    """The newest other step that process 0 sees."""
    others = lambda: (step for step in steps_saved(self._workdir) if step not in steps)
    newest = distributed.decided_by_first_process(lambda: max(others(), default=-1))
    return newest if newest >= 0 else None

  def restore(
    self, step: int, mesh: jax.sharding.Mesh, abstract_state: train_state.TrainState
  ) -> tuple[train_state.TrainState, dict[str, Any]]:
    """Restores a checkpoint onto a mesh, which may differ from the one it was saved on.

    Args:
      step: of the checkpoint.
      mesh: the mesh of the restored arrays.
      abstract_state: TrainState of `jax.ShapeDtypeStruct`s.

    Returns:
      The state and its record.

    Raises:
      UserError: the checkpoint is damaged, or does not fit the config's model or dataset.
    """
    folder = self._folder / str(step)
    if jax.process_index() > 0:
      distributed.wait_until_visible(lambda: _is_complete(folder), str(folder))
    record, state = checkpoint_arrays.restore(folder, mesh, abstract_state, self._verify)
    if self._verify and record.checksums is None:
      self._notify(f"{folder} has no checksums to verify: an earlier release saved it")
    return state, record.run

  def record(self, step: int) -> dict[str, Any]:
    """The record of a checkpoint, without its state.

    Raises:
      DamagedCheckpointError: it cannot be read.
    """
    return checkpoint_record.read(self._folder / str(step)).run

  def wait(self) -> None:
    """Returns when every checkpoint saved so far is complete on disk.

    Raises:
      UserError: the disk is full.
    """
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes the checkpoint being written and stops the background threads."""
    if self._manager is not None:
      manager, self._manager = self._manager, None
      with self._writing():
        try:
          manager.wait_until_finished()
        finally:
          manager.close()  # also after a failed save, whose threads would otherwise remain

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    if bucket.is_remote(self._folder):
      return bucket.explained(self._folder)
    return full_disk.explained(self._folder, self._state_bytes)

  def _create_manager(self) -> ocp.CheckpointManager:
    self._scores |= _scores(self._folder, steps_saved(self._workdir))
    items = (STATE, checkpoint_record.RECORD)
    return checkpoint_manager.create(self._folder, items, self._keep, self._scores)

  def _set_aside(self, damaged: dict[int, str], chosen: int) -> int:
    """Moves damaged checkpoints away and says so; returns `chosen`, the step to continue from."""
    for step in steps_saved(self._workdir):
      try:
        if step < chosen:
          checkpoint_record.read(self._folder / str(step))  # its score is needed
      except DamagedCheckpointError as error:
        damaged[step] = str(error)
    for step, error in damaged.items():
      if self._read_only:
        self._notify(f"{error}; using step {chosen:,}")
      else:
        target = _move_away(self._folder / str(step), self._workdir / DAMAGED_FOLDER)
        use = f"; continuing from step {chosen:,}" if step > chosen else ""
        self._notify(f"{error}; moved to {target}{use}")
    return chosen


def steps_saved(workdir: bucket.AnyPath | str) -> list[int]:
  """Steps of the complete checkpoints in a run's working directory, ascending."""
  folder = _workdir_of_checkpoints(workdir) / FOLDER
  with bucket.explained(folder):
    if not folder.is_dir():
      return []
    entries = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    names = [entry.name for entry in entries if _is_complete(entry)]
  return sorted(int(name) for name in names if name == str(int(name)))


def _workdir_of_checkpoints(workdir: bucket.AnyPath | str) -> bucket.AnyPath:
  """The working directory, or the one in a bucket that it is a copy of."""
  if bucket.is_remote(workdir):
    return workdir
  return remote.origin(user_files.expanded(workdir, "--workdir").absolute())


def _is_complete(entry: bucket.AnyPath) -> bool:
  return (entry / _COMPLETE_IN_BUCKET).exists() if bucket.is_remote(entry) else entry.is_dir()


def restore_params(
  workdir: pathlib.Path | str,
  choice: str = "best",
  notify: Notify = cli.print_to_stderr,
  weights: str = "raw",
) -> tuple[int, dict[str, Any], str]:
  """Restores the parameters alone, on the host; needs no mesh, config or dataset.

  Args:
    workdir: working directory of a run, which may be training; nothing is written.
    choice: "best", which is the last if none was scored, or "last", which is the newest intact one.
    notify: receives one line about each damaged checkpoint that is passed over.
    weights: "raw", "ema": the trained parameters are those of their average, or "better": whichever
      of the two was found to score higher when the checkpoint was evaluated.

  Returns:
    Step of the checkpoint, a nested dict of NumPy arrays, and whether these are "raw" or "ema".

  Raises:
    UserError: there is no complete checkpoint, it is damaged, or it holds no average.
  """
  folder = _workdir_of_checkpoints(workdir) / FOLDER
  steps = steps_saved(workdir)
  if not steps:
    raise UserError(f"{folder}: holds no complete checkpoint; train first")
  best = _best(folder, steps) if choice == "best" else None
  passed_over: list[DamagedCheckpointError] = []
  for step in [best] if best is not None else steps[::-1]:
    try:
      record = checkpoint_record.read(folder / str(step))
      kind = scored_weights.chosen(weights, record.run)
      only = ("params",) if kind == "raw" else ("params", "ema")
      arrays = checkpoint_arrays.read(folder / str(step), record, only)
    except DamagedCheckpointError as error:
      if choice == "best":
        raise DamagedCheckpointError(
          f"{error}; choose the last checkpoint, or move this folder away for the next best"
        ) from error
      passed_over.append(error)
      continue
    for error in passed_over:
      notify(f"{error}; using step {step:,} instead")
    parts = checkpoint_arrays.nested(arrays)
    if kind == "raw":
      return step, parts["params"], kind
    if "ema" not in parts:
      raise UserError(f"{folder}: holds no average of the weights (config.ema was off)")
    return step, jax.device_get(trainable.merge(parts["params"], parts["ema"])), kind
  raise passed_over[0]


def digest(state: train_state.TrainState, num_pairs: int) -> str:
  """SHA-256 over parameters, their average and banks: equal digests mean bit-identical runs.

  Args:
    state: global arrays.
    num_pairs: bank rows that belong to training pairs; padding rows are left out.

  Returns:
    64 hexadecimal digits.
  """
  arrays = checkpoint_arrays.named({"params": state.params, "ema": state.ema})  # None has no arrays
  per_pair = checkpoint_arrays.named({"bank": state.bank, "pairs": state.pairs})
  num_rows = dict.fromkeys(per_pair, num_pairs)
  return array_digests.digest_of_arrays(arrays | per_pair, num_rows)


def _scores(folder: bucket.AnyPath, steps: Sequence[int]) -> dict[int, float]:
  """Scores of the checkpoints that were evaluated."""
  scores = {}
  for step in steps:
    try:
      score = checkpoint_record.read(folder / str(step)).score
    except DamagedCheckpointError:
      if (folder / str(step)).exists():
        raise
      continue  # a run that is training has just deleted it
    if score is not None:
      scores[step] = score
  return scores


def _best(folder: bucket.AnyPath, steps: Sequence[int]) -> int | None:
  return checkpoint_manager.highest(_scores(folder, steps), steps)


def _move_away(checkpoint: bucket.AnyPath, folder: bucket.AnyPath) -> bucket.AnyPath:
  """Moves a damaged checkpoint into a folder, under a name that is free there."""
  try:
    names = [checkpoint.name] + [f"{checkpoint.name}-{number}" for number in range(2, 1000)]
    target = next(folder / name for name in names if not _is_taken(folder / name))
    bucket.move(checkpoint, target)
  except OSError as error:
    raise UserError(f"{checkpoint} is damaged and cannot be moved away ({error})") from error
  return target


def _is_taken(path: bucket.AnyPath) -> bool:
  """Whether something has this name, be it a broken link."""
  return path.exists() if bucket.is_remote(path) else os.path.lexists(path)
