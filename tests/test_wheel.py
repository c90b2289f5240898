"""The wheel works in an empty folder: configs by name, and the command `dgia`."""

import json
import os
import subprocess

import pytest

import dgia_jax
from tests.helpers import wheel_venv
from tests.helpers.command_line import TINY

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  return wheel_venv.install(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def run(programs, tmp_path):
  """Runs a command in an empty folder: (exit code, standard output, standard error)."""
  variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": ""}
  variables |= {"TFDS_DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path)}

  def call(program, *arguments):
    done = subprocess.run(
      [programs / program, *arguments], cwd=tmp_path, env=os.environ | variables,
      capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr

  return call


def test_the_wheel_is_not_the_clone(run, programs):
  code, out, _ = run("python", "-c", "import dgia_jax; print(dgia_jax.__file__)")
  assert code == 0 and str(programs.parent) in out


def test_dgia_says_its_version_and_commands(run):
  assert run("dgia", "--version")[:2] == (0, f"dgia_jax {dgia_jax.__version__}\n")
  for arguments in ((), ("--help",)):
    code, out, _ = run("dgia", *arguments)
    assert code == 0 and "dgia evaluate" in out and "dgia search" in out
  code, _, error = run("dgia", "trian")
  assert code == 2 and "choose one of train, evaluate" in error and error.count("\n") == 1
  for command in ("data", "search", "convert"):
    code, out, _ = run("dgia", command, "--help")
    assert code == 0 and f"dgia {command}" in out


def test_configs_are_found_by_name(run, tmp_path):
  small = ["--config=synth_pedes:small", *TINY[1:], "--config.num_epochs=1"]
  code, out, error = run("dgia", "train", *small, f"--workdir={tmp_path / 'run'}")
  assert code == 0, error
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["dataset"] == "synth_pedes"
  code, out, error = run("dgia", "evaluate", f"--workdir={tmp_path / 'run'}")
  assert code == 0, error
  assert json.loads((tmp_path / "run" / "results.json").read_text())["digest"] == results["digest"]


def test_the_wheel_carries_mini(run):
  code = "from dgia_jax import Retriever; print(Retriever.from_pretrained('mini').image_size)"
  assert run("python", "-c", code)[:2] == (0, "(64, 32)\n")


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config=cuhk_pedes:paper"], ["data prepare cuhk_pedes --source"]),
    (["--config=cuhk"], ["no such config", "cuhk_pedes", "custom", "synth_pedes"]),
    (["--config=synth_pedes", "--workdir=s3://bucket/run"], ["--workdir=s3://", "mount"]),
    (["--config=nowhere/mine.py"], ["no such file", "cuhk_pedes"]),
    (["--config=synth_pedes", "--batch_size=3"], ["did you mean --config.batch_size"]),
    (["--config=synth_pedes", "--config.bank.momentum=1"], ["bank.update_rate"]),
    (["--config=synth_pedes", "--config.dataset.image_size=64x32"], ["image_size"]),
    (["--config=synth_pedes", "--config.optimizer.learning_rate=nan"], ["learning_rate=nan"]),
    (["--config=synth_pedes", "--config.dataset.options.hats=3"], ["hats"]),
  ],
  ids=lambda value: value[-1] if value[0].startswith("--") else "",
)
def test_mistakes_end_in_one_line(run, tmp_path, flags, words):
  code, _, error = run("python", "-m", "dgia_jax.main", f"--workdir={tmp_path / 'run'}", *flags)
  assert not (tmp_path / "s3:").exists()
  lines = [line for line in error.splitlines() if line.startswith("error:")]
  assert code == 2 and len(lines) == 1 and "Traceback" not in error, error
  for word in words:
    assert word in lines[0], lines[0]
