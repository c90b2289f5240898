"""The log reads every step one step late, and stops at the step whose loss is not finite."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax.errors import UserError
from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.train_step import StepOutput
from dgia_jax.reporting.console import Console
from dgia_jax.reporting.metrics_writer import MetricsWriter
from dgia_jax.training import setup, step_log
from tests.helpers import tiny_run


def output(loss, gradient_norm=1.0, mined=0):
  """A step on 8 real pairs, each of which mined `mined` neighbours out of 3."""
  metrics = {"loss": loss, "gradient_norm": gradient_norm, "global_relations": mined}
  valid = jnp.broadcast_to(jnp.arange(3) < mined, (8, 3))
  return StepOutput(
    metrics={name: jnp.float32(value) for name, value in metrics.items()},
    num_pairs=jnp.int32(8),
    index=jnp.arange(8),
    local_relations=jnp.zeros((8, 1), jnp.uint8),
    neighbours=Neighbours(jnp.zeros((8, 3), jnp.int32), jnp.zeros((8, 3)), valid),
  )


@pytest.fixture
def log(tmp_path):
  """A log of a run with 5 steps per epoch that reports every 2 steps."""
  parts = setup.create(tiny_run.config(mesh__data=8), tmp_path, tiny_run.splits())
  progress = Console(file=io.StringIO()).training(5, 3)
  with MetricsWriter(tmp_path, steps_done=0) as writer:
    log = step_log.StepLog(parts, writer, progress, steps_done=0)
    yield log
    log.close()


def logged(tmp_path):
  return {line["step"]: line for line in tiny_run.metrics(tmp_path)}


def test_a_step_is_reported_after_the_next_one_was_sent(log, tmp_path):
  log.after_step(1, output(4.0))
  log.after_step(2, output(2.0))
  assert logged(tmp_path) == {}
  log.after_step(3, output(9.0))
  assert logged(tmp_path)[2]["loss"] == 3.0


def test_an_epoch_ends_an_interval_and_flushing_reports_it(log, tmp_path):
  for step in range(1, 6):
    log.after_step(step, output(float(step)))
  log.flush()
  log.flush()
  losses = {step: line["loss"] for step, line in logged(tmp_path).items()}
  assert losses == {2: 1.5, 4: 3.5, 5: 5.0}


def test_precision_covers_the_interval(log, tmp_path):
  """Bank row 0 shows the same person as the pairs 0, 1 and 2 of the batch."""
  log.after_step(1, output(1.0, mined=1))
  log.after_step(2, output(1.0, mined=0))
  log.flush()
  line = logged(tmp_path)[2]
  assert line["global_precision"] == pytest.approx(100 * 3 / 8)
  assert line["local_precision"] is None and line["global_relations"] == 0.5


class Unread:
  """Part of a step's output that must stay on the devices."""

  def __array__(self, *arguments, **options):
    raise AssertionError("it was fetched")


def test_only_the_first_process_fetches_and_counts_relations(tmp_path, monkeypatch):
  parts = setup.create(tiny_run.config(mesh__data=8), tmp_path, tiny_run.splits())
  progress = Console(file=io.StringIO()).training(5, 3)
  with monkeypatch.context() as patch, MetricsWriter(tmp_path, active=False) as writer:
    patch.setattr(jax, "process_index", lambda: 1)
    log = step_log.StepLog(parts, writer, progress, steps_done=0)
  log.after_step(1, output(1.0)._replace(local_relations=Unread()))
  log.after_step(2, output(np.nan)._replace(local_relations=Unread()))
  with pytest.raises(UserError, match="the loss is nan at step 2"):
    log.flush()
  log.close()


@pytest.mark.parametrize(
  "values, message",
  [
    ({"loss": np.nan}, "the loss is nan at step 2"),
    ({"loss": 1.0, "gradient_norm": np.inf}, "the gradient_norm is inf at step 2"),
  ],
)
def test_what_is_not_finite_is_named_with_its_step(log, values, message):
  log.after_step(1, output(1.0))
  log.after_step(2, output(**values))
  with pytest.raises(UserError, match=message):
    log.after_step(3, output(1.0))


def test_waiting_counts_only_while_the_device_is_idle(log, tmp_path):
  log.after_step(1, output(1.0))
  log._time_finished.result()
  with log.waiting_for_input():
    pass
  log.after_step(2, output(1.0))
  log.flush()
  assert 0 <= logged(tmp_path)[2]["input_wait"] <= 1
