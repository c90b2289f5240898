"""The story of a training run: create or restore, compile, then step, log, evaluate and save."""

import contextlib
import json
import pathlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import config_ranges, distributed, full_disk, remote, sharding, worker_processes
from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.data.prefetch import Prefetcher
from dgia_jax.method import compilation, train_state
from dgia_jax.models.caption_packing import Packing
from dgia_jax.reporting import stored_scores, wandb_mirror
from dgia_jax.reporting.console import Console
from dgia_jax.reporting.metrics_writer import METRICS, MetricsWriter
from dgia_jax.training import (
  checkpoint,
  compilation_cache,
  evaluate,
  evaluate_and_save,
  packing_plan,
  size_check,
)
from dgia_jax.training import setup as setup_lib
from dgia_jax.training import workdir as workdir_lib
from dgia_jax.training.checkpoint_record import DamagedCheckpointError
from dgia_jax.training.evaluate_and_save import EvaluateAndSave, score_splits
from dgia_jax.training.setup import TrainingSetup
from dgia_jax.training.step_log import StepLog
from dgia_jax.training.step_profiler import StepProfiler

PREFETCH = 2  # batches sent to the device ahead of the one in use

# Function (batch on the host, step) -> batch, for reference experiments.
TransformBatch = Callable[[dict, int], dict]


def train(
  config: ConfigDict,
  workdir: pathlib.Path | str,
  console: Console,
  splits: Mapping[str, PairTable] | None = None,
  transform_batch: TransformBatch | None = None,
  identity_labels: str = "",
  **mining: Any,
) -> dict | None:
  """Trains until the last step, resuming from the newest checkpoint, then evaluates.

  Args:
    config: the resolved config.
    workdir: the run's working directory.
    console: shows tables, progress and messages.
    splits: pairs to use instead of the configured dataset, by split name.
    transform_batch: changes a batch on the host, for reference experiments.
    identity_labels: how a reference experiment uses identity labels, which marks the run; "" if the
      training is weakly supervised.
    **mining: as in `setup.create_step`, for reference experiments.

  Returns:
    The content of results.json, or None if a signal ended the run early; its state is then saved.

  Raises:
    UserError: anything that the user can correct, including a loss that is not finite.
  """
  worker_processes.leave_if_work_is_repeated()
  workdir = workdir_lib.create(workdir)
  workdir_lib.check(workdir, config)
  workdir_lib.check_identity_labels(workdir, identity_labels)
  with contextlib.ExitStack() as run:
    run.enter_context(workdir_lib.locked(workdir, console.print))
    run.enter_context(full_disk.explained(workdir))
    setup = _set_up(config, workdir, console, splits, identity_labels)
    checkpoints = checkpoint.Checkpoints(
      workdir, notify=console.print, keep=config.checkpoint.keep, verify=config.checkpoint.verify
    )
    run.enter_context(contextlib.closing(checkpoints))
    with distributed.termination(console.print) as stop_requested:
      if (results := _stored_results(setup, checkpoints)) is not None:
        console.print(_finished(setup))
        console.final("test", results)
        _compare(config, console, results)
        return results

      state, record = _restore_or_initialize(setup, checkpoints, console)
      console.parameter_overview(state.params, size_check.num_trained(setup))
      steps_done = record["data_position"]
      writer = run.enter_context(_open_log(setup, console, record))
      evaluator = evaluate.Evaluator(setup)
      if steps_done == 0 and config.eval.before_training:
        _, scores = score_splits(setup, evaluator, writer, console, 0, state)
        record = record | {"before_training": scores}
      save = EvaluateAndSave(setup, evaluator, checkpoints, writer, console, record)
      save.catch_up(steps_done, state)
      is_stopping = False
      if steps_done < setup.total_steps:
        steps_done, is_stopping = _train_loop(
          setup, console, writer, save, state, steps_done, stop_requested, transform_batch, mining
        )
        checkpoints.wait()
      del state  # its memory is needed for the checkpoints to evaluate
      if is_stopping:
        console.print(
          f"stopped after step {steps_done:,} of {setup.total_steps:,}; the state is saved: run the"
          " same command again to continue"
        )
        return None

    # Everything is saved. A signal may now end a single process; of several, JAX still receives
    # every SIGTERM, to no effect, and only Ctrl-C ends them.
    results = evaluate.report(setup, checkpoints, console, evaluator)
    if config.eval.contact_sheet and jax.process_index() == 0:
      sheet = setup.workdir / workdir_lib.CONTACT_SHEET
      writer.write_image(setup.total_steps, "test/contact_sheet", sheet)
    _compare(config, console, results)
  _print_files_and_next_command(setup, console)
  return results


def _set_up(
  config: ConfigDict,
  workdir: pathlib.Path,
  console: Console,
  splits: Mapping[str, PairTable] | None,
  identity_labels: str,
) -> TrainingSetup:
  """Creates the parts of the run, and makes `workdir` that of this run."""
  setup = setup_lib.create(config, workdir, splits)
  size_check.check(setup)
  if config.wandb.project:
    wandb_mirror.package()
  workdir_lib.claim(workdir, config, identity_labels)
  console.dataset_summary(config.dataset.name, setup.splits, config.dataset.image_size)
  for notice in config_ranges.never_starting(config) + size_check.notices(setup):
    console.print(notice, style="yellow")
  return setup


def _open_log(setup: TrainingSetup, console: Console, record: Mapping[str, Any]) -> MetricsWriter:
  """The log of a run that continues from a checkpoint with this record."""
  is_first = jax.process_index() == 0
  return MetricsWriter(
    setup.workdir,
    record["data_position"],
    active=is_first,
    mirror=_wandb_mirror(setup, console) if is_first else None,
    is_evaluated=not evaluate_and_save.is_pending(record),
  )


def _train_loop(
  setup: TrainingSetup,
  console: Console,
  writer: MetricsWriter,
  save: EvaluateAndSave,
  state: train_state.TrainState,
  steps_done: int,
  stop_requested: Callable[[int], bool],
  transform_batch: TransformBatch | None,
  mining: dict[str, Any],
) -> tuple[int, bool]:
  """Trains until the last step, or until a stop is requested; the state is then saved.

  Args:
    setup, console, writer, save: parts of the run.
    state: the training state; the first step reuses its memory.
    steps_done: steps that led to this state.
    stop_requested: see `distributed.termination`.
    transform_batch, mining: as in `train`.

  Returns:
    The number of steps that are now done, and whether a stop was requested.
  """
  config = setup.config
  tokens_NxL = setup.tokenizer.encode(setup.train_pairs.captions)
  on_devices = global_batches(setup, tokens_NxL, steps_done, transform_batch)
  with contextlib.closing(Prefetcher(on_devices, PREFETCH)) as batches:
    batch = next(batches)
    # Another program may change the captions of a batch, so nothing is known of their lengths.
    packing = None if transform_batch else packing_plan.choose_packing(setup, tokens_NxL)
    if packing:
      console.print(packing_plan.describe(packing, tokens_NxL))
    train_step = _compile_step(setup, console, state, batch, packing, mining)
    with (
      console.training(setup.steps_per_epoch, config.num_epochs, steps_done) as progress,
      contextlib.closing(StepLog(setup, writer, progress, steps_done)) as log,
      contextlib.closing(StepProfiler(config, setup.workdir, steps_done, console)) as profiler,
    ):
      step, is_stopping = steps_done, False
      while step < setup.total_steps and not is_stopping:
        if step > steps_done:
          with log.waiting_for_input():
            batch = next(batches)
        step += 1
        _announce_losses(setup, step, console)
        profiler.before_step(step)
        with jax.transfer_guard("disallow"):
          state, output = train_step(state, batch)
        log.after_step(step, output)
        profiler.after_step(step, output)
        is_stopping = stop_requested(step)
        if save.after_step(step, state, log, is_stopping) and not is_stopping:
          # Again, because an evaluation may take long. Several processes agree on the next step.
          is_stopping = stop_requested(step)
  return step, is_stopping


def _wandb_mirror(setup: TrainingSetup, console: Console) -> wandb_mirror.WandbMirror | None:
  project = setup.config.wandb.project
  if not project:
    return None
  config = setup.config.to_dict()
  return wandb_mirror.WandbMirror(project, setup.workdir, config, console.print)


def _stored_results(setup: TrainingSetup, checkpoints: checkpoint.Checkpoints) -> dict | None:
  """The content of results.json, or None if the run must be continued or evaluated (again)."""
  # Several processes may disagree on whether a shared disk shows the file, so they evaluate again.
  if distributed.several() or checkpoints.latest() != setup.total_steps:
    return None
  try:
    if evaluate_and_save.is_pending(checkpoints.record(setup.total_steps)):
      return None
    results = json.loads((setup.workdir / workdir_lib.RESULTS).read_text(encoding="utf-8"))
    # An evaluation before the end of the training writes the file, too.
    is_final = results["last"]["step"] == setup.total_steps and "last_by_split" in results
  except (OSError, ValueError, KeyError, TypeError, DamagedCheckpointError):
    return None
  return results if is_final else None


def _finished(setup: TrainingSetup) -> str:
  return f"finished already: all {setup.total_steps:,} steps are done"


def _compare(config: ConfigDict, console: Console, results: Mapping[str, Any]) -> None:
  """Shows the scores beside stored ones, if the package has some for this config."""
  stored = stored_scores.of_recipe(config_lib.changed_fields(config))
  console.comparison("test, last epoch", results["last"]["t2i"], stored)


def _restore_or_initialize(
  setup: TrainingSetup, checkpoints: checkpoint.Checkpoints, console: Console
) -> tuple[train_state.TrainState, dict]:
  """Restores the newest checkpoint, or starts from pretrained or random weights.

  Returns:
    The training state and the record that checkpoints store with it.
  """
  restored = checkpoints.restore_newest(setup.mesh, setup.abstract_state)
  if restored is not None:
    step, state, record = restored
    if step < setup.total_steps:
      console.print(f"resuming after step {step:,} of {setup.total_steps:,}")
    elif not evaluate_and_save.is_pending(record):
      console.print(_finished(setup))
    return state, record
  state = setup_lib.initial_state(setup, console.print)
  return state, {"data_position": 0, "epoch": 0, "last": {}, "best": {}, "wall_time_seconds": 0.0}


def global_batches(
  setup: TrainingSetup,
  tokens_NxL: np.ndarray,
  steps_done: int,
  transform_batch: TransformBatch | None = None,
) -> Iterator[dict[str, jax.Array]]:
  """Yields the batches after `steps_done` steps until the end of the run, on the devices."""
  config = setup.config
  batches = batches_lib.train_batches(
    setup.train_pairs,
    tokens_NxL,
    batch_size=config.batch_size,
    seed=config.seed,
    num_epochs=config.num_epochs,
    start_step=steps_done,
    workers=config.dataset.workers,
    rows=sharding.batch_rows(setup.mesh, config.batch_size),
  )
  with contextlib.closing(batches):
    for step, batch in enumerate(batches, start=steps_done):
      if transform_batch is not None:
        batch = transform_batch(batch, step)
      yield sharding.global_batch(setup.mesh, batch, config.batch_size)


def _compile_step(
  setup: TrainingSetup,
  console: Console,
  state: train_state.TrainState,
  batch: dict,
  packing: Packing | None,
  mining: dict[str, Any],
) -> Callable:
  """Compiles the training step and says so before it starts, because it takes a while."""
  cache = compilation_cache.folder()
  later = f"; later starts load it from {cache}" if cache else ""
  console.print(f"compiling the training step: about a minute on the first start{later}")
  start = time.time()
  step_function = compilation.compile_step(
    setup_lib.create_step(setup, packing, **mining), setup.mesh, state, batch
  )
  console.print(f"training step compiled in {time.time() - start:.1f} s")
  return step_function


def _announce_losses(setup: TrainingSetup, step: int, console: Console) -> None:
  """Says that the total loss will rise if more losses start with this step."""
  epoch = setup.epoch_of(step)
  if step != (epoch - 1) * setup.steps_per_epoch + 1:
    return
  starting = setup_lib.losses_starting(setup.config, epoch)
  if epoch > 1 and starting:
    *others, last = starting
    names = f"{', '.join(others)} and {last} losses start" if others else f"{last} loss starts"
    console.print(f"epoch {epoch}: the {names}, so the total loss is higher from here on")


def _print_files_and_next_command(setup: TrainingSetup, console: Console) -> None:
  workdir = remote.origin(setup.workdir)
  files = {
    workdir / workdir_lib.RESULTS: "final scores and the digest of parameters and banks",
    workdir / METRICS: "every logged number, one JSON object per line",
    workdir / checkpoint.FOLDER: "the newest checkpoints and the best one",
  }
  if setup.config.eval.contact_sheet:
    sheet = workdir / workdir_lib.CONTACT_SHEET
    files[sheet] = "ten captions and the images ranked first for each"
  folder = shlex.quote(str(workdir))
  console.outcome(files, f"python -m dgia_jax.convert --run {folder} --out {folder}/hugging_face")
