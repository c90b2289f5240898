"""The command line: mistakes end in one line, and the same command resumes a stopped run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dgia_jax.errors import UserError
from dgia_jax.training import checkpoint
from tests.helpers.command_line import STEPS, TINY, command
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """One CPU device, and a folder of built datasets that the tests share."""
  folder = tmp_path_factory.mktemp("datasets")
  variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TFDS_DATA_DIR": str(folder)}
  return os.environ | variables


def start(environment, *arguments):
  return subprocess.Popen(
    command(*arguments), cwd=ROOT, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def finish(environment, *arguments):
  """Runs to the end: (exit code, standard output, standard error)."""
  process = start(environment, *arguments)
  out, error = process.communicate(timeout=300)
  return process.returncode, out, error


def wait_until(process, condition, seconds=200):
  """Polls quickly, so that a save can be caught while it is written."""
  end = time.time() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.time() < end, "the moment never came"
    time.sleep(0.001)


def saved(workdir, step):
  return lambda: step in checkpoint.steps_saved(workdir)


def being_saved(workdir, after):
  """True while a checkpoint later than `after` lies there unfinished."""
  folder = workdir / checkpoint.FOLDER

  def unfinished():
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return any("tmp" in name and int(name.split(".")[0]) > after for name in names)

  return unfinished


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  code, out, error = finish(environment, *TINY, f"--workdir={workdir}")
  assert code == 0, error
  assert "results on test" in out and "next, try" in out
  return workdir


def results(workdir):
  return json.loads((workdir / "results.json").read_text())


def logged_steps(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [(line["split"], line["step"]) for line in map(json.loads, lines)]


def assert_same_run(workdir, uninterrupted):
  """Bit-identical parameters and banks, equal scores, every step logged once."""
  assert results(workdir)["digest"] == results(uninterrupted)["digest"]
  assert results(workdir)["last"] == results(uninterrupted)["last"]
  assert logged_steps(workdir) == logged_steps(uninterrupted)


def kill(environment, workdir, condition):
  process = start(environment, *TINY, f"--workdir={workdir}")
  wait_until(process, condition)
  process.kill()
  process.communicate()


def test_killed_and_terminated_runs_end_like_an_uninterrupted_one(
  environment, uninterrupted, tmp_path
):
  kill(environment, tmp_path, being_saved(tmp_path, after=3))
  process = start(environment, *TINY, f"--workdir={tmp_path}")
  wait_until(process, saved(tmp_path, 7))
  process.send_signal(signal.SIGTERM)
  out, error = process.communicate(timeout=120)
  assert process.returncode == 0, error
  assert "resuming after step" in out and "stopped after step" in out
  assert max(checkpoint.steps_saved(tmp_path)) < STEPS and not (tmp_path / "results.json").exists()
  code, out, error = finish(environment, *TINY, f"--workdir={tmp_path}")
  assert code == 0, error
  assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_again_and_again(environment, uninterrupted, tmp_path):
  for step in (1, 2, 5, 6, 9, 11):
    moment = saved(tmp_path, step) if step % 2 else being_saved(tmp_path, step)
    kill(environment, tmp_path, moment)
  assert finish(environment, *TINY, f"--workdir={tmp_path}")[0] == 0
  assert_same_run(tmp_path, uninterrupted)


def test_evaluate_gives_the_scores_of_the_end_of_training(environment, uninterrupted):
  before = results(uninterrupted)
  (uninterrupted / "results.json").unlink()
  code, _, error = finish(environment, *TINY, f"--workdir={uninterrupted}", "--mode=evaluate")
  assert code == 0, error
  after = results(uninterrupted)
  for name in ("last", "best", "digest", "best_by_split", "queries", "gallery"):
    assert after[name] == before[name], name


def assert_one_line(outcome, *words):
  code, _, error = outcome
  lines = [line for line in error.splitlines() if line.startswith("error:")]
  assert code == 2 and "Traceback" not in error, error
  assert len(lines) == 1, error
  for word in words:
    assert word in lines[0], lines[0]


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--config=configs/synth_pedes.py", "--config.batchsize=3"], ["batchsize"]),
    (["--config=configs/synth_pedes.py", "--config.batch_size=many"], ["batch_size"]),
    (["--config=configs/synth_pedes.py:huge"], ["huge", ":small"]),
    (["--config=configs/nothing.py"], ["configs/nothing.py"]),
    ([], ["--config"]),
    (["--config=configs/synth_pedes.py", "--mode=dream"], ["dream"]),
    (["--config=configs/synth_pedes.py", "--batch_size=3"], ["batch_size"]),
    (["--config=configs/synth_pedes.py", "stray"], ["stray"]),
    (["--config=configs/cuhk_pedes.py"], ["source", "cuhk_pedes"]),
    (["--config=configs/synth_pedes.py", "--config.mesh.fsdp=3"], ["mesh.fsdp=3", "1 device"]),
    ([*TINY, "--config.model.name=huge"], ["model.name", "tiny"]),
  ],
  ids=lambda value: " ".join(value)[:60] if value else "none",
)
def test_mistakes_end_in_one_line(environment, tmp_path, arguments, words):
  outcome = finish(environment, *arguments, f"--workdir={tmp_path / 'run'}")
  assert_one_line(outcome, *words)


def test_a_setting_whose_name_is_a_word_of_python_can_be_set(monkeypatch):
  """config_flags parses names as Python, to which `global` means something."""
  from dgia_jax import main, run_flags

  monkeypatch.chdir(ROOT)
  arguments = ["main", "--config=configs/synth_pedes.py", "--config.loss.weights.global=0.25"]
  monkeypatch.setattr(sys, "argv", arguments)
  try:
    run_flags.parse(arguments)
    assert main.FLAGS.config.loss.weights["global"] == 0.25
  finally:
    main.FLAGS.unparse_flags()


@pytest.mark.parametrize("option", [["camera=0.5"], ["camera", "0.5"]])
def test_an_option_of_the_dataset_that_no_config_file_lists_can_be_set(option, monkeypatch):
  from dgia_jax import main, run_flags

  arguments = ["main", "--config=synth_pedes:small", f"--config.dataset.options.{option[0]}"]
  monkeypatch.setattr(sys, "argv", arguments)
  try:
    assert run_flags.parse([*arguments, *option[1:]]) == ["main"]
    assert main.FLAGS.config.dataset.options.camera == 0.5
  finally:
    main.FLAGS.unparse_flags()
  with pytest.raises(UserError, match="options.seed: give it a value"):
    run_flags.parse([*arguments, *option[1:], "--config.dataset.options.seed"])


def _settings_of_a_run(monkeypatch, *settings):
  """The config of a run with four devices along fsdp, as evaluate reads it."""
  from dgia_jax import config, main, run_flags

  arguments = ["main", "--mode=evaluate", "--workdir=somewhere", *settings]
  monkeypatch.setattr(sys, "argv", arguments)
  stored = config.base()
  stored.mesh.fsdp = 4
  try:
    assert run_flags.parse(arguments) == ["main"]
    return run_flags.with_run_settings(stored)
  finally:
    main.FLAGS.unparse_flags()


def test_settings_without_a_config_replace_those_of_the_run(monkeypatch):
  assert _settings_of_a_run(monkeypatch).mesh.fsdp == 4
  settings = (
    "--config.mesh.fsdp=1",
    "--config.eval.batch_size=32",
    "--config.dataset.source=/data",
  )
  config = _settings_of_a_run(monkeypatch, *settings)
  assert (config.mesh.fsdp, config.eval.batch_size, config.dataset.source) == (1, 32, "/data")
  assert config.is_locked


@pytest.mark.parametrize(
  "setting, words",
  [
    ("--config.batch_size=3", "--config.batch_size: without --config only .*: mesh, gradient"),
    ("--config.dataset.options.holdout=3", "options.holdout: without --config only .*: mesh"),
    ("--config.eval=3", "--config.eval: without --config only .*eval.batch_size"),
    ("--config.mesh.fsdp=many", "mesh.fsdp"),
    ("--config.mesh.sides=1", "--config: unknown name: .*sides"),
    ("--config.mesh.fsdp", "--config.mesh.fsdp: give it a value"),
  ],
)
def test_settings_of_a_run_that_cannot_be_replaced(setting, words, monkeypatch):
  with pytest.raises(UserError, match=words):
    _settings_of_a_run(monkeypatch, setting)


def test_a_missing_workdir_is_named(environment):
  assert_one_line(finish(environment, "--config=configs/synth_pedes.py"), "--workdir")
