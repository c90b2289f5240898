"""Trains runs in processes of their own, several at a time, each at most once.

A run is a plain command, so a killed one resumes when the command is given again. A lock on a file
in its folder is held by the training process itself and ends with it, however it ends: a second
runner, here or on a machine that shares the folder, leaves the run alone. (On a shared file system
without locks give every machine a `--shard` of its own.)
"""

import concurrent.futures
import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from experiments.paper import runs as runs_lib

LOCK = ".lock"


def missing(runs):
  """Those of the runs that are not finished, each folder once, in order."""
  unique = {run.folder: run for run in runs}
  return [run for run in unique.values() if runs_lib.results(run) is None]


def starts(runs):
  """The runs that unfinished ones of `runs` start from and that are not finished themselves."""
  return missing([run.start for run in missing(runs) if run.start is not None])


def train_with_starts(runs, jobs, say):
  """Trains what is not finished of the runs; those they start from first.

  Args and returns: as `train`.
  """
  problems = train(starts(runs), jobs, say)
  ready = [r for r in missing(runs) if r.start is None or runs_lib.results(r.start) is not None]
  waiting = {r.title: f"waits for {r.start.title}" for r in missing(runs) if r not in ready}
  return problems | waiting | train(ready, jobs, say)


def command_line(run):
  """The command that trains a run, as one line for a shell."""
  return shlex.join(["python", *run.arguments])


def train(runs, jobs, say):
  """Trains runs, `jobs` at a time; on as many cores as jobs, each run has one to itself.

  SIGTERM and Ctrl-C stop the running ones, which save their state first.

  Args:
    runs: as `missing` gives them.
    jobs: processes at a time.
    say: function (text) that prints one line of progress.

  Returns:
    {run title: why it is not finished} of those that are not.
  """
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
  pins = [cores[i] if jobs == len(cores) > 1 else None for i in range(jobs)]
  launcher = _Launcher(pins, say, len(runs))
  with _terminated_as_interrupt(), concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    futures = {run.title: pool.submit(launcher.train, run) for run in runs}
    try:
      reasons = {title: future.result() for title, future in futures.items()}
    except BaseException:
      launcher.stop()
      pool.shutdown(cancel_futures=True)
      raise
  return {title: reason for title, reason in reasons.items() if reason}


class _Launcher:
  """What the threads share: free cores, running processes, and whether to stop."""

  def __init__(self, pins, say, count):
    self._pins, self._say, self._count = pins, say, count
    self._started, self._children, self._stopping = 0, set(), False
    self._guard = threading.Lock()

  def train(self, run):
    """Trains one run to its end; returns None, or why it is not finished."""
    with _lock(run.folder) as (lock, holder):
      if lock is None:
        self._say(f"{run.title}: already being trained by {holder}")
        return f"being trained by {holder}"
      if runs_lib.results(run) is not None:  # another machine finished it in the meantime
        return None
      pin, start = self._pins.pop(), time.time()
      try:
        code = self._run_process(run, lock, pin)
      finally:
        self._pins.append(pin)
    log = run.folder / runs_lib.LOG
    if runs_lib.results(run) is not None:
      self._say(f"{run.title}: finished in {time.time() - start:.0f} s")
      return None
    if self._stopping:
      return "stopped; run the same command to resume"
    self._say(f"{run.title}: exit code {code}: {_last_line(log)}")
    return f"exit code {code}: {_last_line(log)} (see {log})"

  def _run_process(self, run, lock, pin):
    with (run.folder / runs_lib.LOG).open("a", encoding="utf-8") as log:
      with self._guard:
        if self._stopping:
          return None
        self._started += 1
        self._say(f"{run.title}: started ({self._started} of {self._count}): {run.folder}")
        child = subprocess.Popen(
          [sys.executable, *run.arguments],
          stdout=log,
          stderr=subprocess.STDOUT,
          pass_fds=[lock],  # the lock lives as long as the training does
          start_new_session=True,  # Ctrl-C is ours to pass on
        )
        self._children.add(child)
      if pin is not None:
        os.sched_setaffinity(child.pid, {pin})
      try:
        return child.wait()
      finally:
        self._children.discard(child)

  def stop(self):
    """Asks all running processes to save and end."""
    with self._guard:
      self._stopping = True
      for child in list(self._children):
        child.terminate()


@contextlib.contextmanager
def _lock(folder):
  """Yields (file descriptor of the lock, ""), or (None, who holds it)."""
  folder.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      yield None, os.read(descriptor, 200).decode(errors="replace") or "another process"
      return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"host {socket.gethostname()}, process {os.getpid()}".encode(), 0)
    yield descriptor, ""
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _terminated_as_interrupt():
  """SIGTERM ends the runner as Ctrl-C does."""

  def interrupt(number, frame):
    del number, frame
    raise KeyboardInterrupt

  previous = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


def _last_line(path):
  lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
  return lines[-1] if lines else "it wrote nothing"
