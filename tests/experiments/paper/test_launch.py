"""Training processes: each run is trained once, failures are reported, locked runs are skipped."""

import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterable

import pytest

from dgia_jax.errors import UserError
from dgia_jax.training import workdir
from experiments.paper import launch, runs, slots, tables
from tests.helpers import fabricated

# Finishes a run as a training does: writes its final results.json.
FINISH = "import os, sys; os.rename(sys.argv[1] + '/late.json', sys.argv[1] + '/results.json')"


def make_runs(
  workdir: pathlib.Path, program: str, seeds: Iterable[int] = (0,)
) -> list[runs.ExperimentRun]:
  """Runs whose training is a Python program, which renames late.json to results.json."""
  options = runs.Options(tables.DATASETS["synth_pedes"], workdir)
  unfinished = []
  for seed in seeds:
    run = runs.make_run(options, tables.EXPERIMENTS["main"].settings[0], seed)
    fabricated.finish(run, last=20.0)
    os.rename(run.folder / "results.json", run.folder / "late.json")
    arguments = ("-S", "-c", program, str(run.folder))
    unfinished.append(dataclasses.replace(run, arguments=arguments))
  return unfinished


def test_missing_runs_are_trained_once(tmp_path):
  planned, lines = make_runs(tmp_path, FINISH, seeds=(0, 1, 2)), []
  assert launch.missing([*planned, *planned]) == planned
  assert launch.train(planned, jobs=2, print_line=lines.append) == {}
  assert launch.missing(planned) == []
  assert sum("finished in" in line for line in lines) == 3


def test_a_start_is_trained_first_and_its_failure_holds_up_the_others(tmp_path):
  def pair(program):
    first, second = make_runs(tmp_path, program, seeds=(0, 1))
    return first, dataclasses.replace(second, start=first)

  first, second = pair("import sys; sys.exit('error: bad')")
  problems = launch.train_with_starts([second], jobs=2, print_line=lambda text: None)
  assert list(problems) == [first.title, second.title]
  assert problems[second.title] == f"waits for {first.title}"
  first, second = pair(FINISH)
  lines = []
  assert launch.train_with_starts([second], jobs=2, print_line=lines.append) == {}
  started = [line.split(":")[0] for line in lines if "started" in line]
  assert started == [first.title, second.title]


def test_a_failure_is_reported_with_its_last_line_and_other_runs_continue(tmp_path):
  program = f"import sys\nif sys.argv[1].endswith('seed0'): sys.exit('error: bad')\n{FINISH}"
  first, second = make_runs(tmp_path, program, seeds=(0, 1))
  reasons = launch.train([first, second], jobs=1, print_line=lambda text: None)
  assert list(reasons) == [first.title]
  assert "exit code 1: error: bad" in reasons[first.title]
  assert launch.missing([first, second]) == [first]


def test_a_run_locked_by_another_process_is_skipped(tmp_path):
  (run,) = make_runs(tmp_path, FINISH)
  with (run.folder / launch.LOCK).open("w") as holder:
    holder.write("host far, process 7")
    holder.flush()
    fcntl.flock(holder, fcntl.LOCK_EX)
    reasons = launch.train([run], jobs=1, print_line=lambda text: None)
  assert reasons == {run.title: "being trained by host far, process 7"}
  assert launch.train([run], jobs=1, print_line=lambda text: None) == {}


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_start_that_another_process_trains_is_waited_for(tmp_path, monkeypatch, is_finished):
  """It is trained here if the other process stops before it is finished."""
  monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)
  start, run = make_runs(tmp_path, FINISH, seeds=(0, 1))
  run, lines, holder = dataclasses.replace(run, start=start), [], (start.folder / launch.LOCK)
  holder.write_text("host far, process 7")
  file = holder.open("r+")
  fcntl.flock(file, fcntl.LOCK_EX)

  def print_line(text):
    lines.append(text)
    if "waiting for" in text:  # the other process ends
      if is_finished:
        os.rename(start.folder / "late.json", start.folder / "results.json")
      file.close()

  assert launch.train_with_starts([run], jobs=1, print_line=print_line) == {}
  assert (
    f"{start.title}: waiting for host far, process 7, because other runs start from it" in lines
  )
  started = [line.split(":")[0] for line in lines if "started" in line]
  assert started == [run.title] if is_finished else [start.title, run.title]


def test_a_file_system_without_locks_trains(tmp_path, monkeypatch):
  def refuse(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")

  (run,) = make_runs(tmp_path, FINISH)
  monkeypatch.setattr(fcntl, "flock", refuse)
  assert launch.train([run], jobs=1, print_line=lambda text: None) == {}
  assert launch.missing([run]) == []


def test_the_training_can_take_its_own_lock_under_the_launchers(tmp_path):
  root = str(pathlib.Path(workdir.__file__).parents[2])
  program = (
    f"import sys; sys.path.insert(0, {root!r})\nfrom dgia_jax.training import workdir\n"
    f"with workdir.locked(workdir.resolve(sys.argv[1]), print):\n  pass\n{FINISH}"
  )
  (run,) = make_runs(tmp_path, program)
  run = dataclasses.replace(run, arguments=("-c", program, str(run.folder)))
  assert launch.train([run], jobs=1, print_line=lambda text: None) == {}


def test_every_job_is_pinned_to_its_own_core(tmp_path):
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    pytest.skip("needs two cores")
  write = "import json, os, sys; json.dump(sorted(os.sched_getaffinity(0)), open(sys.argv[1] + "
  program = "import time; time.sleep(0.2); " + write + f"'/cores.json', 'w')); {FINISH}"
  planned = make_runs(tmp_path, program, seeds=range(len(cores)))
  assert launch.train(planned, jobs=len(cores), print_line=lambda text: None) == {}
  pinned = [json.loads((run.folder / "cores.json").read_text()) for run in planned]
  assert all(len(cores_of_run) == 1 for cores_of_run in pinned)


def test_every_job_sees_its_own_gpu(tmp_path, monkeypatch):
  for number in range(2):
    (tmp_path / f"nvidia{number}").touch()
  monkeypatch.setattr(slots, "DEVICE_FILES", tmp_path)
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  write = (
    "import os, sys; open(sys.argv[1] + '/gpu', 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"
  )
  planned = make_runs(tmp_path, f"import time; time.sleep(0.2); {write}; {FINISH}", seeds=(0, 1, 2))
  with pytest.raises(UserError, match="--jobs 3"):
    launch.train_with_starts(planned, jobs=3, print_line=lambda text: None)
  del planned[2]
  assert launch.train(planned, jobs=3, print_line=lambda text: None) == {}
  assert {(run.folder / "gpu").read_text() for run in planned} == {"0", "1"}
  assert launch.train([], jobs=3, print_line=lambda text: None) == {}  # nothing to refuse


def test_sigterm_stops_the_training_processes_and_the_launcher(tmp_path):
  program = (
    "import signal, sys, time\n"
    "def stop(*_):\n  open(sys.argv[1] + '/saved', 'w').close()\n  sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, stop)\nopen(sys.argv[1] + '/ready', 'w').close()\n"
    "time.sleep(60)\n"
  )
  first, second = make_runs(tmp_path, program, seeds=(0, 1))

  def terminate():
    while not (first.folder / "ready").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=terminate)
  thread.start()
  with pytest.raises(KeyboardInterrupt):
    launch.train([first, second], jobs=1, print_line=lambda text: None)
  thread.join()
  assert (first.folder / "saved").exists()
  assert not (second.folder / "ready").exists()


def test_a_command_line_is_quoted_for_a_shell(tmp_path):
  (run,) = make_runs(tmp_path, "print('a b')")
  assert launch.command_line(run).startswith("python -S -c 'print('")
