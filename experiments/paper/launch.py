"""Trains runs in parallel processes, each run at most once.

Each run is a plain training command, so an interrupted run resumes when the command is repeated.
The training process holds a file lock in the run's folder until it exits. Another launcher, on this
machine or on one that shares the folder, skips a locked run, and waits for one that its own runs
start from. On a shared file system without locks, give every machine its own `--shard`, and train
the runs that others start from beforehand (`--dry_run` lists them).
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from dgia_jax import files
from dgia_jax.errors import UserError
from experiments.paper import runs as runs_lib
from experiments.paper import slots
from experiments.paper.runs import ExperimentRun
from experiments.paper.slots import Slot

LOCK = ".launch.lock"  # the training holds a lock of its own, `.lock`
POLL_SECONDS = 1.0  # between looks at a lock that another process holds
_HELD = "being trained by"
PrintLine = Callable[[str], None]


def missing(runs: Iterable[ExperimentRun]) -> list[ExperimentRun]:
  """The unfinished runs in order, one for each folder."""
  unique = {run.folder: run for run in runs}
  return [run for run in unique.values() if runs_lib.results(run) is None]


def missing_starts(runs: Iterable[ExperimentRun]) -> list[ExperimentRun]:
  """The unfinished runs from which the unfinished ones of `runs` start."""
  return missing([run.start for run in missing(runs) if run.start is not None])


def train_with_starts(
  runs: Sequence[ExperimentRun], jobs: int, print_line: PrintLine
) -> dict[str, str]:
  """Like `train`, for the unfinished runs, after the runs from which they start."""
  slots.of_jobs(jobs, len(missing(runs)))  # refuses before the starts are trained
  problems = _train_starts(missing_starts(runs), jobs, print_line)
  unfinished = missing(runs)
  starts = missing([run.start for run in unfinished if run.start is not None])
  folders = {start.folder for start in starts}
  waits = lambda run: run.start is not None and run.start.folder in folders
  waiting = {run.title: f"waits for {run.start.title}" for run in unfinished if waits(run)}
  ready = [run for run in unfinished if not waits(run)]
  return problems | waiting | train(ready, jobs, print_line)


def _train_starts(
  starts: Sequence[ExperimentRun], jobs: int, print_line: PrintLine
) -> dict[str, str]:
  """Like `train`, but waits for runs that other processes train, and takes over what they leave."""
  problems = {}
  while starts:
    reasons = train(starts, jobs, print_line)
    held = [start for start in starts if reasons.get(start.title, "").startswith(_HELD)]
    for start in held:
      del reasons[start.title]
      _wait_until_free(start, print_line)
    problems |= reasons
    starts = missing(held)
  return problems


def _wait_until_free(run: ExperimentRun, print_line: PrintLine) -> None:
  """Returns when no other process holds the lock of a run."""
  is_first = True
  while True:
    with _lock(run.folder) as (lock, holder):
      if lock is not None:
        return
    if is_first:
      print_line(f"{run.title}: waiting for {holder}, because other runs start from it")
      is_first = False
    time.sleep(POLL_SECONDS)


def command_line(run: ExperimentRun) -> str:
  """The shell command that trains a run."""
  return shlex.join(["python", *run.arguments])


def train(runs: Sequence[ExperimentRun], jobs: int, print_line: PrintLine) -> dict[str, str]:
  """Trains runs in parallel, each in a slot of its own (`slots.of_jobs`).

  SIGTERM and Ctrl-C stop the running processes, which save their state first.

  Args:
    runs: from `missing`.
    jobs: number of parallel processes.
    print_line: receives lines of progress.

  Returns:
    {run title: reason} of the runs that are not finished.

  Raises:
    UserError: there are fewer GPUs than jobs and runs.
  """
  if not runs:
    return {}
  launcher = _Launcher(slots.of_jobs(jobs, len(runs)), print_line, len(runs))
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
  """State shared by the threads: free slots, running processes, and whether to stop."""

  def __init__(self, free: list[Slot], print_line: PrintLine, count: int):
    self._free, self._print_line, self._count = free, print_line, count
    self._started, self._children, self._stopping = 0, set(), False
    self._guard = threading.Lock()

  def train(self, run: ExperimentRun) -> str | None:
    """Trains one run; returns the reason if it is not finished."""
    with _lock(run.folder) as (lock, holder):
      if lock is None:
        self._print_line(f"{run.title}: already {_HELD} {holder}")
        return f"{_HELD} {holder}"
      if runs_lib.results(run) is not None:  # another machine has finished it
        return None
      slot, start = self._free.pop(), time.time()
      try:
        code = self._run_process(run, lock, slot)
      finally:
        self._free.append(slot)
    log = run.folder / runs_lib.LOG
    if runs_lib.results(run) is not None:
      self._print_line(f"{run.title}: finished in {time.time() - start:.0f} s")
      return None
    if self._stopping:
      return "stopped; the same command continues"
    self._print_line(f"{run.title}: exit code {code}: {_last_line(log)}")
    return f"exit code {code}: {_last_line(log)} (see {log})"

  def _run_process(self, run: ExperimentRun, lock: int, slot: Slot) -> int | None:
    """Exit code of the training process; None if the launcher is stopping."""
    with (run.folder / runs_lib.LOG).open("a", encoding="utf-8") as log:
      with self._guard:
        if self._stopping:
          return None
        self._started += 1
        self._print_line(f"{run.title}: started ({self._started} of {self._count}): {run.folder}")
        child = subprocess.Popen(
          [sys.executable, *run.arguments],
          stdout=log,
          stderr=subprocess.STDOUT,
          env=slot.environment,
          pass_fds=[lock],  # the lock lasts until the training process exits
          start_new_session=True,  # the terminal sends Ctrl-C to this process only
        )
        self._children.add(child)
      if slot.core is not None:
        os.sched_setaffinity(child.pid, {slot.core})
      try:
        return child.wait()
      finally:
        self._children.discard(child)

  def stop(self) -> None:
    """Asks all running processes to save their state and exit."""
    with self._guard:
      self._stopping = True
      for child in list(self._children):
        child.terminate()


class _Lock(NamedTuple):
  """File descriptor of a held lock; None if another process, `holder`, holds it."""

  descriptor: int | None
  holder: str


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[_Lock]:
  """Tries to lock a run's folder until the end of the context."""
  folder.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    try:
      files.lock(descriptor)
    except BlockingIOError:
      holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
      yield _Lock(None, holder)
      return
    except files.NoLocksError:
      pass  # the shards of the machines must keep them apart
    except OSError as error:
      raise UserError(f"{folder / LOCK} cannot be locked ({error})") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"host {socket.gethostname()}, process {os.getpid()}".encode(), 0)
    yield _Lock(descriptor, "")
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
  """SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

  def interrupt(*_: object) -> None:
    raise KeyboardInterrupt

  previous = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


def _last_line(path: pathlib.Path) -> str:
  lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
  return lines[-1] if lines else "no output"
