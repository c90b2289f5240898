"""The story of a training run: create or restore, compile, then step, log, evaluate and save."""

import contextlib
import json
import pathlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from clu import platform
from ml_collections import ConfigDict

from dgia_jax import distributed, sharding
from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.data.prefetch import Prefetcher
from dgia_jax.method import compilation, train_state
from dgia_jax.reporting.console import Console
from dgia_jax.reporting.metrics_writer import MetricsWriter
from dgia_jax.training import checkpoint, compilation_cache, evaluate, size_check, step_profiler
from dgia_jax.training import setup as setup_lib
from dgia_jax.training import workdir as workdir_lib
from dgia_jax.training.setup import TrainingSetup
from dgia_jax.training.step_log import StepLog

PREFETCH = 2  # batches sent to the device ahead of the one in use

# Function (batch on the host, step) -> batch, for reference experiments.
TransformBatch = Callable[[dict, int], dict]


def train(
  config: ConfigDict,
  workdir: pathlib.Path | str,
  console: Console,
  splits: Mapping[str, PairTable] | None = None,
  transform_batch: TransformBatch | None = None,
  **mining: Any,
) -> dict | None:
  """Trains until the last step, resuming from the newest checkpoint, then evaluates.

  Args:
    config: the resolved config.
    workdir: the run's working directory.
    console: shows tables, progress and messages.
    splits: pairs to use instead of the configured dataset, by split name.
    transform_batch: changes a batch on the host, for reference experiments.
    **mining: as in `setup.create_step`, for reference experiments.

  Returns:
    The content of results.json, or None if a signal ended the run early; its state is then saved.

  Raises:
    UserError: anything that the user can correct, including a loss that is not finite.
  """
  workdir_lib.check(workdir, config)
  setup = setup_lib.create(config, workdir, splits)
  size_check.check(setup)
  workdir_lib.claim(workdir, config)
  platform.work_unit().create_artifact(
    platform.ArtifactType.DIRECTORY, str(setup.workdir), "working directory"
  )
  console.dataset_summary(config.dataset.name, setup.splits, config.dataset.image_size)
  for notice in size_check.notices(setup):
    console.print(notice, style="yellow")
  with contextlib.ExitStack() as stack:
    checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.keep)
    stack.enter_context(contextlib.closing(checkpoints))
    stop_requested = stack.enter_context(distributed.termination())
    if checkpoints.latest() == setup.total_steps:
      console.print(f"finished already: all {setup.total_steps:,} steps are done")
      if (results := _stored_results(setup)) is not None:
        console.final("test", results)
        return results
    state, record = _restore_or_initialize(setup, checkpoints, console)
    console.parameter_overview(state.params)
    is_writing = jax.process_index() == 0
    writer = MetricsWriter(setup.workdir, resume_step=record["data_position"], active=is_writing)
    stack.enter_context(writer)
    if record["data_position"] < setup.total_steps:
      record = _run_steps(
        setup, checkpoints, console, writer, state, record, stop_requested, transform_batch, mining
      )
    checkpoints.wait()
    if record["data_position"] < setup.total_steps:
      console.print(
        f"stopped after step {record['data_position']:,} of {setup.total_steps:,}; the state is"
        " saved: run the same command again to continue"
      )
      return None
    results = evaluate.report(setup, checkpoints, console)
    if config.eval.contact_sheet and is_writing:
      sheet = setup.workdir / workdir_lib.CONTACT_SHEET
      writer.write_image(setup.total_steps, "test/contact_sheet", sheet)
  _print_files_and_next_command(setup, console)
  return results


def _stored_results(setup: TrainingSetup) -> dict | None:
  """The content of results.json, or None if the run must be evaluated (again)."""
  # Several processes may disagree on whether a shared disk shows the file, so they evaluate again.
  if distributed.several():
    return None
  try:
    return json.loads((setup.workdir / workdir_lib.RESULTS).read_text(encoding="utf-8"))
  except (FileNotFoundError, json.JSONDecodeError):
    return None


def _restore_or_initialize(
  setup: TrainingSetup, checkpoints: checkpoint.Checkpoints, console: Console
) -> tuple[train_state.TrainState, dict]:
  """Restores the newest checkpoint, or starts from pretrained or random weights.

  Returns:
    The training state and the record that checkpoints store beside it.
  """
  step = checkpoints.latest()
  if step is not None:
    abstract = jax.eval_shape(setup_lib.init_state(setup))
    state, record = checkpoints.restore(step, setup.mesh, abstract)
    console.print(f"resuming after step {step:,} of {setup.total_steps:,}")
    return state, record
  state = train_state.create(setup.mesh, setup_lib.init_state(setup))
  if setup.config.pretrained:
    params, unused = setup_lib.load_pretrained(setup, state.params)
    state = state.replace(params=params)
    console.print(
      f"weights from {setup.config.pretrained}; not used: {', '.join(unused) or 'none'}"
    )
  return state, {"data_position": 0, "epoch": 0, "last": {}, "best": {}, "wall_time_seconds": 0.0}


def _run_steps(
  setup: TrainingSetup,
  checkpoints: checkpoint.Checkpoints,
  console: Console,
  writer: MetricsWriter,
  state: train_state.TrainState,
  record: dict,
  stop_requested: Callable[[int], bool],
  transform_batch: TransformBatch | None,
  mining: dict[str, Any],
) -> dict:
  """Takes steps until the run ends or is asked to stop; returns the last checkpoint's record."""
  config, first = setup.config, record["data_position"]
  evaluator = evaluate.Evaluator(setup)
  with contextlib.ExitStack() as stack:
    closing = lambda resource: stack.enter_context(contextlib.closing(resource))
    batches = closing(Prefetcher(global_batches(setup, first, transform_batch), PREFETCH))
    batch = next(batches)
    step_function = _compile_step(setup, console, state, batch, mining)
    progress = console.training(setup.steps_per_epoch, config.num_epochs, first)
    stack.enter_context(progress)
    log = closing(StepLog(setup, writer, progress, first))
    profiler = closing(step_profiler.StepProfiler(config, setup.workdir, first, console))

    for step in range(first + 1, setup.total_steps + 1):
      _announce_losses(setup, step, console)
      profiler.before_step(step)
      with jax.transfer_guard("disallow"):
        state, output = step_function(state, batch)
      log.add(step, output)
      profiler.after_step(step, output)

      ends_epoch = step % setup.steps_per_epoch == 0
      is_last = stop_requested(step) or step == setup.total_steps
      if ends_epoch or is_last or _saves(config, step):
        log.flush()  # a loss that is not finite stops the run before its state is saved
        score = None
        if ends_epoch and _evaluates(config, setup.epoch_of(step)):
          score, record = _evaluate(setup, evaluator, state, record, step, writer, console)
        record = record | {
          "data_position": step,
          "epoch": setup.epoch_of(step),
          "wall_time_seconds": round(record["wall_time_seconds"] + log.seconds(), 3),
        }
        checkpoints.save(state, record, score)
        log.restart_clock(step)
      if is_last:
        break
      with log.waiting_for_input():
        batch = next(batches)
  return record


def global_batches(
  setup: TrainingSetup, first_step: int, transform_batch: TransformBatch | None = None
) -> Iterator[dict[str, jax.Array]]:
  """Yields the batches after `first_step` steps until the end of the run, on the devices."""
  config = setup.config
  batches = batches_lib.train_batches(
    setup.train_pairs,
    setup.tokenizer.encode(setup.train_pairs.captions),
    batch_size=config.batch_size,
    seed=config.seed,
    num_epochs=config.num_epochs,
    start_step=first_step,
    workers=config.dataset.workers,
    rows=sharding.batch_rows(setup.mesh, config.batch_size),
  )
  with contextlib.closing(batches):
    for step, batch in enumerate(batches, start=first_step):
      if transform_batch is not None:
        batch = transform_batch(batch, step)
      yield sharding.global_batch(setup.mesh, batch, config.batch_size)


def _compile_step(
  setup: TrainingSetup,
  console: Console,
  state: train_state.TrainState,
  batch: dict,
  mining: dict[str, Any],
) -> Callable:
  """Compiles the training step and says so before it starts, because it takes a while."""
  cache = compilation_cache.folder()
  later = f"; later starts load it from {cache}" if cache else ""
  console.print(f"compiling the training step: about a minute on the first start{later}")
  platform.work_unit().set_task_status("compiling the training step")
  start = time.time()
  step_function = compilation.compile_step(
    setup_lib.create_step(setup, **mining), setup.mesh, state, batch
  )
  console.print(f"training step compiled in {time.time() - start:.1f} s")
  platform.work_unit().set_task_status("training step compiled")
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


def _saves(config: ConfigDict, step: int) -> bool:
  return bool(config.checkpoint.every_steps) and step % config.checkpoint.every_steps == 0


def _evaluates(config: ConfigDict, epoch: int) -> bool:
  return epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs


def _evaluate(
  setup: TrainingSetup,
  evaluator: evaluate.Evaluator,
  state: train_state.TrainState,
  record: dict,
  step: int,
  writer: MetricsWriter,
  console: Console,
) -> tuple[float, dict]:
  """Scores val and test and records the best epoch of each.

  Returns:
    The score that selects the best checkpoint, and the new record.
  """
  epoch = setup.epoch_of(step)
  scores = {}
  for split in (name for name in ("val", "test") if name in setup.splits):
    scores[split], _ = evaluator.score(state.params, split)
    writer.write(step, epoch, split, scores[split])
  selected_on = setup.config.eval.select_on
  chance = evaluate.chance_levels(setup.splits[selected_on])
  console.evaluation(f"{selected_on}, epoch {epoch}", scores[selected_on], chance)
  best = dict(record["best"])
  for split in scores:
    value = scores[split]["t2i"]["R1"]
    # The later of equal scores wins here, as it does when the best checkpoint is chosen.
    if split not in best or value >= best[split]["R1"]:
      best[split] = {"epoch": epoch, "step": step, "R1": value, "scores": scores}
  return scores[selected_on]["t2i"]["R1"], record | {"best": best, "last": scores}


def _print_files_and_next_command(setup: TrainingSetup, console: Console) -> None:
  files = {
    setup.workdir / workdir_lib.RESULTS: "final scores and the digest of parameters and banks",
    setup.workdir / workdir_lib.METRICS: "every logged number, one JSON object per line",
    setup.workdir / checkpoint.FOLDER: "the newest checkpoints and the best one",
  }
  if setup.config.eval.contact_sheet:
    sheet = setup.workdir / workdir_lib.CONTACT_SHEET
    files[sheet] = "ten captions and the images ranked first for each"
  folder = shlex.quote(str(setup.workdir))
  console.outcome(files, f"python -m dgia_jax.convert --run {folder} --out {folder}/hugging_face")
