"""The launch recipes are valid bash, and the recipe for one machine starts a run."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers.command_line import TINY
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.integration

SCRIPTS = sorted((ROOT / "launch").iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
  assert script.read_text().startswith("#!/usr/bin/env bash\n") and os.access(script, os.X_OK)
  subprocess.run(["bash", "-n", script], check=True)


def test_every_host_of_a_slice_gets_the_whole_command(tmp_path):
  """The flags are quoted for the remote shell."""
  (tmp_path / "gcloud").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  (tmp_path / "gcloud").chmod(0o755)
  done = subprocess.run(
    [ROOT / "launch" / "tpu_slice.sh", "me", "zone-a", "/mnt/run", "--config", "a b.py"],
    env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert "--worker=all" in done.stdout.split()
  assert "dgia_jax.main --workdir=/mnt/run --config a\\ b.py" in done.stdout
  assert subprocess.run([ROOT / "launch" / "tpu_slice.sh"], capture_output=True).returncode == 2


@pytest.mark.parametrize("cpus", ["6", None])
def test_every_task_of_slurm_gets_its_processors(tmp_path, cpus):
  (tmp_path / "srun").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  (tmp_path / "srun").chmod(0o755)
  environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  done = subprocess.run(
    [ROOT / "launch" / "slurm.sbatch", "--config", "a b.py"],
    env=environment | ({"SLURM_CPUS_PER_TASK": cpus} if cpus else {}),
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  given = [f"--cpus-per-task={cpus}"] if cpus else []
  command = ["python3", "-m", "dgia_jax.main", "--config", "a b.py"]
  assert done.stdout.splitlines() == ["--kill-on-bad-exit=1", *given, *command]


@pytest.mark.slow
def test_two_processes_on_this_machine(tmp_path):
  workdir = tmp_path / "run"
  environment = {
    **os.environ,
    "PROCESSES": "2", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    "TFDS_DATA_DIR": str(tmp_path),
  }  # fmt: skip
  script = ROOT / "launch" / "one_machine.sh"
  start = lambda *flags: (
    subprocess.run(
      [script, *TINY, f"--workdir={workdir}", *flags], cwd=ROOT, env=environment, timeout=600
    ).returncode
  )
  assert start() == 0
  assert json.loads((workdir / "results.json").read_text())["device"].startswith("2 x")
  assert start("--config.batch_size=7") == 2
