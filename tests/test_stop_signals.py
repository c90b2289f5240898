"""The first signal asks for a stop, the second ends the process, none of them with a traceback."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from dgia_jax import stop_signals
from tests.helpers.paths import ROOT

INT, TERM = signal.SIGINT, signal.SIGTERM

# Stands for training: `blocked` never gets to the end of a step, like a compiler that is at work.
PROGRAM = textwrap.dedent("""
  import sys, time
  from dgia_jax import stop_signals
  stop_signals.GRACE_SECONDS = 0.2
  say = lambda message: print(message, flush=True)
  with stop_signals.watched(say) as signals:
    if "stepping" in sys.argv or "stuck" in sys.argv:
      assert not signals.stop_requested()
    say("ready")
    while "stepping" not in sys.argv or not signals.stop_requested():
      time.sleep(0.01)
  say("saved")
""")


def run(*signals, mode, seconds_between=0.1):
  """Sends signals to the program: (exit code, standard output, standard error)."""
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, mode], cwd=ROOT, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  assert process.stdout.readline() == "ready\n"
  for number in signals:
    process.send_signal(number)
    time.sleep(seconds_between)
  out, error = process.communicate(timeout=30)
  return process.returncode, out, error


@pytest.mark.parametrize("number, again", [(INT, "Ctrl-C"), (TERM, "SIGTERM")])
def test_the_first_signal_stops_after_the_step(number, again):
  code, out, error = run(number, mode="stepping")
  assert (code, error) == (0, "")
  first, last = out.splitlines()
  assert first.startswith("stopping after this step") and again in first and last == "saved"


@pytest.mark.parametrize("numbers, code", [((INT, INT), 130), ((TERM, TERM), 143)])
def test_the_second_signal_ends_the_process_during_a_step(numbers, code):
  outcome, out, error = run(*numbers, mode="stuck")
  assert outcome == code and "saved" not in out
  assert error == "stopped at once; the newest complete checkpoint is kept\n"


@pytest.mark.parametrize("number, code", [(INT, 130), (TERM, 143)])
def test_one_signal_ends_a_process_without_a_finished_step(number, code):
  outcome, _, error = run(number, mode="blocked")
  assert (outcome, error) == (code, "stopped before the first step: there was nothing to save\n")


def test_one_signal_leaves_a_long_step_alone_because_there_is_something_to_save():
  process = subprocess.Popen([sys.executable, "-c", PROGRAM, "stuck"], cwd=ROOT, stdout=-1)
  process.stdout.readline()
  process.send_signal(TERM)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=1)
  process.kill()
  process.communicate()


def test_handlers_are_put_back():
  before = [signal.getsignal(number) for number in (INT, TERM)]
  with stop_signals.watched(print):
    assert signal.getsignal(TERM) != before[1]
  assert [signal.getsignal(number) for number in (INT, TERM)] == before
  assert signal.set_wakeup_fd(-1) == -1


def test_ignored_signals_stay_ignored():
  previous = signal.signal(TERM, signal.SIG_IGN)
  try:
    with stop_signals.watched(print):
      assert signal.getsignal(TERM) == signal.SIG_IGN
  finally:
    signal.signal(TERM, previous)


def test_other_threads_can_train_without_signals():
  answers = []

  def work():
    with stop_signals.watched(print) as signals:
      answers.append(signals.stop_requested())

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert answers == [False]


@pytest.mark.parametrize(
  "error, code, line",
  [
    ("KeyboardInterrupt()", 130, "stopped"),
    ("OSError(28, 'No space left on device')", 2, "error: the disk is full"),
    (
      "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate')",
      2,
      "error: a device of process 0 has too little memory (RESOURCE_EXHAUSTED: Out of memory",
    ),
  ],
)
def test_an_interrupt_and_full_disks_and_devices_end_in_one_line(error, code, line):
  program = (
    "import jax\nfrom dgia_jax import distributed\n"
    f"with distributed.failing_together():\n  raise {error}"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == code
  assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
