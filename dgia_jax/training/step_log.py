"""The training log: reads the output of every step, one step late, and reports averages.

The host fetches a step's output only after it has sent the next step to the device, so the device
never waits for the host.
"""

import concurrent.futures
import contextlib
import math
import time
from collections.abc import Iterator

import jax

from dgia_jax.errors import UserError
from dgia_jax.method.train_step import StepOutput
from dgia_jax.reporting import metrics_writer
from dgia_jax.reporting.console import TrainingProgress
from dgia_jax.training import step_metrics
from dgia_jax.training.relation_precision import RelationPrecision
from dgia_jax.training.setup import TrainingSetup

# The gradient is checked too: it spoils the parameters one step before the loss shows it.
MUST_BE_FINITE = ("loss", "gradient_norm")


class StepLog:
  """Called after every step; writes one line per logging interval and at the end of an epoch."""

  def __init__(
    self,
    setup: TrainingSetup,
    writer: metrics_writer.MetricsWriter,
    progress: TrainingProgress,
    steps_done: int,
  ) -> None:
    """`steps_done`: steps that were done before this process started."""
    self._setup, self._writer, self._progress = setup, writer, progress
    self._steps_done = steps_done
    self._learning_rates = setup.learning_rates()
    pairs = setup.train_pairs
    # Only the first process logs, so the others need not unpack B x B relations in every step.
    is_counted = pairs.has_identities and jax.process_index() == 0
    self._precision = RelationPrecision(pairs.person_of_pair_N if is_counted else None)
    self._speed = metrics_writer.SpeedMeter(setup.config.batch_size, setup.total_steps)
    self._interval: step_metrics.IntervalMetrics | None = None
    self._unread = None  # step, its output, and the interval's metrics if the interval ends there
    self._watcher = concurrent.futures.ThreadPoolExecutor(1, "watcher")
    self._time_finished: concurrent.futures.Future | None = None
    self._clock = time.time()

  def after_step(self, step: int, output: StepOutput) -> None:
    """Takes the output of the step that was just sent and reads the output of the one before.

    Raises:
      UserError: the loss or the gradient of the earlier step is not finite.
    """
    config = self._setup.config
    if self._interval is None:
      self._interval = step_metrics.IntervalMetrics(self._setup.mesh, output.metrics)
    self._interval.add(output.metrics, output.num_pairs)
    self.flush()
    is_logged = step % config.log_every_steps == 0 or step % self._setup.steps_per_epoch == 0
    self._unread = (step, output, self._interval.take() if is_logged else None)
    self._time_finished = self._watcher.submit(_time_when_ready, output)
    if step == self._steps_done + 1:
      jax.block_until_ready(output)
      self._speed.start(step, time.time())

  def flush(self) -> None:
    """Reads the output that was not read yet; waits until that step is finished.

    Raises:
      UserError: its loss or gradient is not finite.
    """
    if self._unread is None:
      return
    (step, output, interval), self._unread = self._unread, None
    checked = {name: output.metrics[name] for name in MUST_BE_FINITE}
    relations = output._replace(metrics={}) if self._precision.is_counting else None
    checked, relations = jax.device_get((checked, relations))
    for name, value in checked.items():
      if not math.isfinite(value):
        raise UserError(
          f"the {name} is {value} at step {step:,}: training stopped, the last good checkpoint is"
          " kept; lower config.optimizer.learning_rate or raise config.loss.temperature, in a new"
          " --workdir"
        )
    if relations is not None:
      self._precision.add(relations)
    self._progress.advance(step)
    if interval is not None:
      self._log(step, step_metrics.read(interval))

  def _log(self, step: int, values: dict[str, float | None]) -> None:
    speed = self._speed.read(step, time.time())
    values |= self._precision.take()
    values |= {
      "learning_rate": float(self._learning_rates[step - 1]),
      "pairs_per_second": speed.pairs_per_second,
      "step_seconds": speed.step_seconds,
      "input_wait": speed.input_wait,
    }
    self._writer.write(step, self._setup.epoch_of(step), "train", values)
    self._progress.report(step, values, speed.seconds_left)

  @contextlib.contextmanager
  def waiting_for_input(self) -> Iterator[None]:
    """Measures for how long the device is idle while the loop waits for its next batch.

    Waiting costs nothing while the device still computes the step that was sent last.
    """
    start = time.time()
    yield
    if self._time_finished is not None and self._time_finished.done():
      self._speed.wait(time.time() - max(start, self._time_finished.result()))

  def seconds(self) -> float:
    """Seconds since the clock was last restarted."""
    return time.time() - self._clock

  def restart_clock(self, step: int) -> None:
    """Starts a new interval, so that evaluation and saving do not count as training."""
    self._clock = time.time()
    self._speed.start(step, self._clock)

  def close(self) -> None:
    """Stops the background thread."""
    self._watcher.shutdown()


def _time_when_ready(output: StepOutput) -> float:
  """Waits for a step and returns the time at which it was finished."""
  jax.block_until_ready(output)
  return time.time()
