"""SIGTERM and Ctrl-C: the first one asks for a stop after the current step, the second one ends.

Python runs signal handlers between two bytecodes of the main thread. While XLA compiles or a long
step runs, that is not before it returns. A thread of our own therefore reads the signals from the
wake-up file descriptor, into which the interpreter writes them at once.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

GRACE_SECONDS = 5.0  # until a process that has not finished a step ends, and so loses nothing
_END_OF_WATCH = 0  # no signal has this number

Notify = Callable[[str], None]


@contextlib.contextmanager
def watched(
  notify: Notify,
  signals: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM),
  on_first: Callable[[], None] = lambda: None,
) -> Iterator["StopSignals"]:
  """Watches for signals until the block ends.

  A second signal ends the process at once. So does the first, after `GRACE_SECONDS`, as long as no
  step is done: the process is compiling, and there is nothing to save.

  Args:
    notify: receives one line when the first signal arrives.
    signals: to watch; those that the parent process ignores, as nohup does, stay ignored.
    on_first: called when the first signal arrives, in another thread.
  """
  stop_signals = StopSignals(notify, on_first)
  if threading.current_thread() is not threading.main_thread():
    yield stop_signals  # only the main thread may install handlers
    return
  signals = tuple(s for s in signals if signal.getsignal(s) != signal.SIG_IGN)
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  # The handlers do nothing, but without one the interpreter would not write to the descriptor.
  previous = {number: signal.signal(number, lambda *_: None) for number in signals}
  previous_descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  watcher = threading.Thread(target=stop_signals.watch, args=(reading, signals), daemon=True)
  watcher.start()
  try:
    yield stop_signals
  finally:
    signal.set_wakeup_fd(previous_descriptor)
    for number, handler in previous.items():
      signal.signal(number, handler)
    os.write(writing, bytes([_END_OF_WATCH]))
    watcher.join()
    os.close(reading)
    os.close(writing)


class StopSignals:
  """Knows whether a signal has arrived and whether a step is done."""

  def __init__(self, notify: Notify, on_first: Callable[[], None]):
    self._notify, self._on_first = notify, on_first
    self._first: int | None = None
    self._step_is_done = False

  def stop_requested(self) -> bool:
    """To be called after each step: whether the run must save and stop."""
    self._step_is_done = True
    return self._first is not None

  def watch(self, descriptor: int, signals: tuple[int, ...]) -> None:
    """Reads signal numbers until the end of the watch; ends the process when that is due."""
    while True:
      has_grace = self._first is not None and not self._step_is_done
      ready, _, _ = select.select([descriptor], [], [], GRACE_SECONDS if has_grace else None)
      if not ready:
        if not self._step_is_done:
          leave(128 + self._first, "stopped before the first step: there was nothing to save")
        continue
      for number in os.read(descriptor, 64):
        if number == _END_OF_WATCH:
          return
        if number not in signals:
          continue
        if self._first is not None:
          leave(128 + number, "stopped at once; the newest complete checkpoint is kept")
        self._first = number
        again = "press Ctrl-C again" if number == signal.SIGINT else "send SIGTERM again"
        self._notify(f"stopping after this step; {again} to quit now")
        self._on_first()


def leave(code: int, message: str) -> NoReturn:
  """Ends the process at once, and its child processes: no cleanup, which could wait or crash.

  The interpreter's own exit would unload libraries under threads that compile or write.
  """
  print(message, file=sys.stderr, flush=True)
  with contextlib.suppress(OSError, ValueError):  # a closed stdout must not prevent the exit
    sys.stdout.flush()
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(code)
