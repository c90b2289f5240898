"""The story of a run, top to bottom: build, restore, compile, loop, log, evaluate, save, report."""

import concurrent.futures
import contextlib
import math
import shlex
import time

import jax
import numpy as np

from dgia_jax import distributed, sharding
from dgia_jax.data import batches as batches_lib
from dgia_jax.data.prefetch import Prefetcher
from dgia_jax.errors import UserError
from dgia_jax.method import compilation, train_state
from dgia_jax.reporting import metrics_writer
from dgia_jax.training import checkpoint, evaluate
from dgia_jax.training import setup as setup_lib
from dgia_jax.training import workdir as workdir_lib
from dgia_jax.training.relation_precision import RelationPrecision

PREFETCH = 2  # batches on their way to the device while one is computed


def train(config, workdir, console, splits=None, transform_batch=None, **searches):
  """Trains a run to its end, or goes on with it, and reports on it.

  Args:
    config: the resolved config.
    workdir: the run's folder; training resumes from its newest complete checkpoint.
    console: console.Console.
    splits: {"train": PairTable, ...} to use instead of the configured dataset.
    transform_batch: function (batch, step) -> batch on the host, for reference experiments.
    **searches: as in `setup.create_step`, for reference experiments.

  Returns:
    What results.json holds, or None when a SIGTERM ended the run early (its state is saved).

  Raises:
    UserError: for whatever the user can mend, a diverged loss included.
  """
  workdir_lib.check(workdir, config)
  run = setup_lib.create(config, workdir, splits)
  workdir_lib.claim(workdir, config)
  console.dataset_summary(config.dataset.name, run.splits, config.dataset.image_size)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.keep)
  with contextlib.closing(checkpoints), distributed.termination() as asked_to_stop:
    state, record = _start(run, checkpoints, console)
    console.parameter_overview(state.params)
    state, record = _loop(
      run, checkpoints, console, state, record, asked_to_stop, transform_batch, searches
    )
    checkpoints.wait()
    if record["data_position"] < run.total_steps:
      console.print(
        f"stopped by SIGTERM after step {record['data_position']:,}; saved: "
        "the same command goes on from there"
      )
      return None
    results = evaluate.report(run, checkpoints, console)
  _say_what_next(run, console)
  return results


def _start(run, checkpoints, console):
  """In this order: the newest checkpoint, else pretrained or fresh weights."""
  step = checkpoints.latest()
  if step is not None:
    abstract = jax.eval_shape(setup_lib.init_state(run))
    state, record = checkpoints.restore(step, run.mesh, abstract)
    console.print(f"resuming after step {step:,} of {run.total_steps:,}")
    return state, record
  state = train_state.create(run.mesh, setup_lib.init_state(run))
  if run.config.pretrained:
    params, dropped = setup_lib.load_pretrained(run, state.params)
    state = state.replace(params=params)
    console.print(f"weights from {run.config.pretrained}; not used: {', '.join(dropped) or 'none'}")
  return state, {"data_position": 0, "epoch": 0, "last": {}, "best": {}, "wall_time_seconds": 0.0}


def _loop(run, checkpoints, console, state, record, asked_to_stop, transform_batch, searches):
  """Steps until the end or until asked to stop; returns the last state and its record."""
  config, first = run.config, record["data_position"]
  if first >= run.total_steps:
    return state, record
  batches = Prefetcher(_placed_batches(run, first, transform_batch), PREFETCH)
  batch = next(batches)
  start = time.time()
  step_function = compilation.compile_step(
    setup_lib.create_step(run, **searches), run.mesh, state, batch
  )
  console.print(f"training step compiled in {time.time() - start:.1f} s")
  evaluator = evaluate.Evaluator(run)
  writing = jax.process_index() == 0
  with (
    contextlib.closing(batches),
    metrics_writer.MetricsWriter(run.workdir, resume_step=first, active=writing) as writer,
    console.training(run.steps_per_epoch, config.num_epochs, first) as progress,
    concurrent.futures.ThreadPoolExecutor(1, "watcher") as watcher,
  ):
    reader = _ReportReader(run, writer, progress, watcher, first)
    for step in range(first + 1, run.total_steps + 1):
      with jax.transfer_guard("disallow"):
        state, report = step_function(state, batch)
      reader.push(step, report)
      ends_epoch = step % run.steps_per_epoch == 0
      last = asked_to_stop(step) or step == run.total_steps
      saves = config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0
      if ends_epoch or last or saves:
        reader.flush()
        score = None
        if ends_epoch and _evaluates(config, step // run.steps_per_epoch):
          score, record = _evaluate(run, evaluator, state, record, step, writer, console)
        seconds = record["wall_time_seconds"] + reader.seconds()
        record = record | {
          "data_position": step,
          "epoch": -(-step // run.steps_per_epoch),
          "wall_time_seconds": round(seconds, 3),
        }
        checkpoints.save(state, record, score)
        reader.restart_clock(step)
      if last:
        break
      with reader.waiting_for_input():
        batch = next(batches)
  return state, record


def _evaluates(config, epoch):
  return epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs


def _evaluate(run, evaluator, state, record, step, writer, console):
  """Scores val and test; remembers, for each, the epoch that was best on it."""
  epoch = step // run.steps_per_epoch
  scores = {}
  for split in (name for name in ("val", "test") if name in run.splits):
    scores[split], _ = evaluator.score(state.params, split)
    writer.write(step, epoch, split, scores[split])
  selected_on = run.config.eval.select_on
  console.evaluation(f"{selected_on}, epoch {epoch}", scores[selected_on])
  best = dict(record["best"])
  for split in scores:
    value = scores[split]["t2i"]["R1"]
    # Of equal scores the later counts, as it does for the checkpoint that is kept as the best.
    if split not in best or value >= best[split]["R1"]:
      best[split] = {"epoch": epoch, "step": step, "R1": value, "scores": scores}
  return scores[selected_on]["t2i"]["R1"], record | {"best": best, "last": scores}


def _placed_batches(run, first_step, transform_batch=None):
  """Global batches from the one after `first_step` steps to the end of the run."""
  config = run.config
  batches = batches_lib.train_batches(
    run.train_pairs,
    run.tokenizer.encode(run.train_pairs.captions),
    batch_size=config.batch_size,
    seed=config.seed,
    num_epochs=config.num_epochs,
    start_step=first_step,
    workers=config.dataset.workers,
    rows=sharding.batch_rows(run.mesh, config.batch_size),
  )
  with contextlib.closing(batches):
    for step, batch in enumerate(batches, start=first_step):
      if transform_batch is not None:
        batch = transform_batch(batch, step)
      yield sharding.global_batch(run.mesh, batch, config.batch_size)


class _ReportReader:
  """Reads each step's report after the next step was sent, so the device never waits for it."""

  def __init__(self, run, writer, progress, watcher, first_step):
    self._run, self._writer, self._progress = run, writer, progress
    self._watcher, self._finished = watcher, None
    self._precision = RelationPrecision(run.train_pairs.person_of_pair_N)
    self._meter = metrics_writer.SpeedMeter(run.config.batch_size, run.total_steps)
    self._pending, self._window = None, []
    self._clock = time.time()
    self._first_step = first_step

  def push(self, step, report):
    """Takes the report of the step just sent and reads the one before it."""
    self.flush()
    self._pending = (step, report)
    self._finished = self._watcher.submit(_time_when_ready, report)
    if step == self._first_step + 1:
      jax.block_until_ready(report)
      self._meter.start(step, time.time())

  @contextlib.contextmanager
  def waiting_for_input(self):
    """Counts the time inside in which the device has nothing to do.

    While it is busy with the step sent last, the loop may wait for a batch at no cost.
    """
    start = time.time()
    yield
    if self._finished.done():
      self._meter.wait(time.time() - max(start, self._finished.result()))

  def flush(self):
    """Reads what is pending."""
    if self._pending is None:
      return
    (step, report), self._pending = self._pending, None
    report = jax.device_get(report)
    # The gradient too: it makes the parameters worthless one step before the loss tells.
    for name in ("loss", "gradient_norm"):
      value = float(report.metrics[name])
      if not math.isfinite(value):
        raise UserError(
          f"the {name} is {value} at step {step:,}: training stopped, the last good checkpoint is "
          "kept; lower config.optimizer.learning_rate or raise config.loss.temperature, in a new "
          "--workdir"
        )
    self._precision.add(report)
    self._window.append(report.metrics)
    self._progress.advance(step)
    config = self._run.config
    if step % config.log_every_steps == 0 or step % self._run.steps_per_epoch == 0:
      self._log(step)

  def _log(self, step):
    values = {
      name: float(np.mean([metrics[name] for metrics in self._window])) for name in self._window[0]
    }
    self._window = []
    values |= self._precision.read()
    speed, seconds_left, input_wait = self._meter.read(step, time.time())
    values |= {"pairs_per_second": speed, "input_wait": input_wait}
    epoch = (step - 1) // self._run.steps_per_epoch + 1
    self._writer.write(step, epoch, "train", values)
    self._progress.report(step, values, seconds_left)

  def seconds(self):
    """Seconds since the clock was last restarted."""
    return time.time() - self._clock

  def restart_clock(self, step):
    """Begins a new interval, so that evaluations do not count as training."""
    self._clock = time.time()
    self._meter.start(step, self._clock)


def _time_when_ready(report):
  """Seconds since the epoch at which the step behind a report ended; waits for that."""
  jax.block_until_ready(report)
  return time.time()


def _say_what_next(run, console):
  files = {
    run.workdir / workdir_lib.RESULTS: "final scores and the digest of parameters and banks",
    run.workdir / workdir_lib.METRICS: "every logged number, one JSON object a line",
    run.workdir / checkpoint.FOLDER: "the newest checkpoints and the best",
  }
  if run.config.eval.contact_sheet:
    files[run.workdir / workdir_lib.CONTACT_SHEET] = "ten captions and the images ranked first"
  folder = shlex.quote(str(run.workdir))
  console.outcome(files, f"python -m dgia_jax.convert --run {folder} --out {folder}/hugging_face")
