"""Runs that are stopped or die around an evaluation, and a damaged best checkpoint."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import time

import jax
import pytest

from dgia_jax import distributed, sharding
from dgia_jax.reporting.console import Console
from dgia_jax.training import checkpoint, checkpoint_record, evaluate, train
from tests.helpers import tiny_run
from tests.helpers.stopped_run import Stopped

pytestmark = pytest.mark.integration

EPOCH = 5  # steps


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """The runs use one device although the process has eight."""
  with pytest.MonkeyPatch.context() as patch:
    create_mesh = sharding.create_mesh
    patch.setattr(sharding, "create_mesh", lambda **sizes: create_mesh(devices=jax.devices()[:1]))
    yield


def run(workdir):
  """(content of results.json or None, what the console shows)"""
  out = io.StringIO()
  return train.train(tiny_run.config(), workdir, Console(file=out), tiny_run.splits()), out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  return workdir, run(workdir)[0]


def logged(workdir):
  return [(line["split"], line["step"]) for line in tiny_run.metrics(workdir)]


def assert_ends_like(uninterrupted, workdir):
  """Finishes an interrupted run and compares it."""
  expected_workdir, expected = uninterrupted
  results, out = run(workdir)
  for name in ("digest", "last", "best", "last_by_split", "best_by_split"):
    assert results[name] == expected[name], name
  assert logged(workdir) == logged(expected_workdir)
  assert checkpoint.steps_saved(workdir) == checkpoint.steps_saved(expected_workdir)
  return out.getvalue()


@pytest.mark.parametrize(
  "during", [1, 4, 6], ids=["val, epoch 1", "test, epoch 2", "test, epoch 3"]
)
def test_a_run_that_dies_during_an_evaluation_loses_no_step(
  uninterrupted, tmp_path, monkeypatch, during
):
  """The state was saved before. The evaluation is repeated, and nothing is logged twice."""
  count, score = itertools.count(1), evaluate.Evaluator.score

  def die(*arguments):
    if next(count) == during:
      raise Stopped
    return score(*arguments)

  with monkeypatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(evaluate.Evaluator, "score", die)
    run(tmp_path)
  assert checkpoint.steps_saved(tmp_path)[-1] == EPOCH * ((during + 1) // 2)
  assert_ends_like(uninterrupted, tmp_path)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stop_is_not_delayed_by_an_evaluation(uninterrupted, tmp_path, monkeypatch, epoch):
  """After SIGTERM there may be less time left than an evaluation takes."""

  @contextlib.contextmanager
  def termination(notify):
    yield lambda step: step == EPOCH * epoch

  with monkeypatch.context() as patch:
    patch.setattr(distributed, "termination", termination)
    results, out = run(tmp_path)
  assert results is None and f"val, epoch {epoch}" not in out.getvalue()
  assert f"stopped after step {EPOCH * epoch} of 15; the state is saved" in out.getvalue()
  assert checkpoint.steps_saved(tmp_path)[-1] == EPOCH * epoch
  out = io.StringIO()
  scored = evaluate.evaluate(tiny_run.config(), tmp_path, Console(file=out), tiny_run.splits())
  assert scored["last"]["epoch"] == epoch and "last_by_split" not in scored
  assert f"epoch {epoch} was not evaluated in training" in out.getvalue()
  text = assert_ends_like(uninterrupted, tmp_path)
  assert f"epoch {epoch} is saved but was not evaluated: evaluating it now" in text
  assert "finished already" not in text and ("resuming" in text) == (epoch < 3)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_signal_during_an_evaluation_stops_before_the_next_step(
  uninterrupted, tmp_path, monkeypatch, epoch
):
  """After the last step, before the report."""
  if epoch == 3:
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / checkpoint.FOLDER / "15")
    (tmp_path / "results.json").unlink()
  notices, score = [], evaluate.Evaluator.score
  termination = distributed.termination

  def interrupted(*arguments):
    if not notices:
      os.kill(os.getpid(), signal.SIGTERM)
    while not notices:
      time.sleep(0.01)
    return score(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(distributed, "termination", lambda notify: termination(notices.append))
    patch.setattr(evaluate.Evaluator, "score", interrupted)
    results, out = run(tmp_path)
  step = EPOCH * epoch
  assert results is None and f"stopped after step {step} of 15; the state is" in out.getvalue()
  newest = checkpoint.steps_saved(tmp_path)[-1]
  assert newest == step and checkpoint.Checkpoints(tmp_path).record(step)["last"]
  assert ("finished already" in assert_ends_like(uninterrupted, tmp_path)) == (epoch == 3)


def set_score(workdir, step, score):
  """Changes the score of a checkpoint, as if its evaluation had given this one."""
  folder = workdir / checkpoint.FOLDER / str(step)
  checkpoint_record.amend(folder, checkpoint_record.read(folder).run, score)


def test_a_damaged_best_checkpoint_is_left_out_of_the_results(uninterrupted, tmp_path):
  workdir, trained = tmp_path / "run", uninterrupted[1]
  shutil.copytree(uninterrupted[0], workdir)
  for step in checkpoint.steps_saved(workdir):
    set_score(workdir, step, 100.0 if step == 10 else 0.0)
  best = workdir / checkpoint.FOLDER / "10"

  def evaluated():
    out = io.StringIO()
    results = evaluate.evaluate(tiny_run.config(), workdir, Console(file=out), tiny_run.splits())
    assert json.loads((workdir / "results.json").read_text()) == results
    return results, out.getvalue()

  assert evaluated()[0]["best"]["step"] == 10
  for part in ("state/d", "record"):
    shutil.rmtree(best / part)
    results, text = evaluated()
    assert "best" not in results and results["last"] == trained["last"]
    assert "checkpoints/10 is damaged" in text and 'results.json will have no "best"' in text
