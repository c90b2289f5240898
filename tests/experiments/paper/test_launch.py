"""Processes that train: each run once, failures told, a held run left alone."""

import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import threading
import time

import pytest

from experiments.paper import launch, runs, tables
from tests.helpers import fabricated

# Finishes a run as a training would: makes its results.json final.
FINISH = "import os, sys; os.rename(sys.argv[1] + '/late.json', sys.argv[1] + '/results.json')"


def make_runs(workdir, program, seeds=(0,)):
  """Runs whose training is a Python program; results appear when it renames late.json."""
  options = runs.Options(tables.DATASETS["synth_pedes"], pathlib.Path(workdir))
  made = []
  for seed in seeds:
    run = runs.make_run(options, tables.EXPERIMENTS["main"].settings[0], seed)
    fabricated.finish(run, last=20.0)
    os.rename(run.folder / "results.json", run.folder / "late.json")
    made.append(
      runs.ExperimentRun(
        run.name, seed, run.folder, run.config, ("-S", "-c", program, str(run.folder))
      )
    )
  return made


def test_missing_runs_are_trained_once(tmp_path):
  made, said = make_runs(tmp_path, FINISH, seeds=(0, 1, 2)), []
  assert launch.missing([*made, *made]) == made
  assert launch.train(made, jobs=2, say=said.append) == {}
  assert launch.missing(made) == []
  assert sum("finished in" in line for line in said) == 3


def test_what_others_start_from_is_trained_first_and_missed_when_it_fails(tmp_path):
  def pair(program):
    first, second = make_runs(tmp_path, program, seeds=(0, 1))
    return first, dataclasses.replace(second, start=first)

  first, second = pair("import sys; sys.exit('error: bad')")
  problems = launch.train_with_starts([second], jobs=2, say=lambda text: None)
  assert list(problems) == [first.title, second.title]
  assert problems[second.title] == f"waits for {first.title}"
  first, second = pair(FINISH)
  said = []
  assert launch.train_with_starts([second], jobs=2, say=said.append) == {}
  started = [line.split(":")[0] for line in said if "started" in line]
  assert started == [first.title, second.title]


def test_a_failure_is_told_with_its_last_line_and_stops_no_other(tmp_path):
  program = f"import sys\nif sys.argv[1].endswith('seed0'): sys.exit('error: bad')\n{FINISH}"
  first, second = make_runs(tmp_path, program, seeds=(0, 1))
  reasons = launch.train([first, second], jobs=1, say=lambda text: None)
  assert list(reasons) == [first.title]
  assert "exit code 1: error: bad" in reasons[first.title]
  assert launch.missing([first, second]) == [first]


def test_a_run_that_another_process_holds_is_left_alone(tmp_path):
  (run,) = make_runs(tmp_path, FINISH)
  with (run.folder / launch.LOCK).open("w") as holder:
    holder.write("host far, process 7")
    holder.flush()
    fcntl.flock(holder, fcntl.LOCK_EX)
    reasons = launch.train([run], jobs=1, say=lambda text: None)
  assert reasons == {run.title: "being trained by host far, process 7"}
  assert launch.train([run], jobs=1, say=lambda text: None) == {}


def test_a_jobs_core_is_its_own(tmp_path):
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    pytest.skip("one core: nothing to share out")
  tell = "import json, os, sys; json.dump(sorted(os.sched_getaffinity(0)), open(sys.argv[1] + "
  program = "import time; time.sleep(0.2); " + tell + f"'/cores.json', 'w')); {FINISH}"
  made = make_runs(tmp_path, program, seeds=range(len(cores)))
  assert launch.train(made, jobs=len(cores), say=lambda text: None) == {}
  pinned = [json.loads((run.folder / "cores.json").read_text()) for run in made]
  assert all(len(found) == 1 for found in pinned)


def test_sigterm_is_passed_on_and_ends_the_runner(tmp_path):
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
    launch.train([first, second], jobs=1, say=lambda text: None)
  thread.join()
  assert (first.folder / "saved").exists()
  assert not (second.folder / "ready").exists()


def test_a_command_is_one_line_for_a_shell(tmp_path):
  (run,) = make_runs(tmp_path, "print('a b')")
  assert launch.command_line(run).startswith("python -S -c 'print('")
