"""Several processes as one run: how they find each other, stop together and fail together.

Every process runs the same command. On a Cloud TPU slice and in a SLURM step they find each other
by themselves; elsewhere three flags say who is where. A process that dies takes the others with it:
they end with an error within about `HEARTBEAT_SECONDS` instead of waiting for ever, and the same
commands, started again, go on from the last checkpoint.
"""

import contextlib
import glob
import importlib.util
import itertools
import os
import signal
import sys
import traceback

import jax
from jax.experimental import multihost_utils

from dgia_jax.errors import UserError

HEARTBEAT_SECONDS = 30  # a process that was not heard of for so long is taken to be dead
SHUTDOWN_SECONDS = 60  # how long a process that is done waits for the others
MEETING_SECONDS = 24 * 3600  # how long processes wait for one that builds the dataset, say

_meetings = itertools.count()


def start(coordinator=None, num_processes=None, process_id=None, detect=True):
  """Joins the processes of a run; to be called before anything asks for devices.

  Args:
    coordinator: HOST:PORT at which process 0 can be reached, or None.
    num_processes, process_id: how many there are, and which this is, or None.
    detect: look for a Cloud TPU slice or a SLURM step when no coordinator is given.

  Raises:
    UserError: some of the three are missing or do not fit, or the processes cannot find each other.
  """
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if len(missing) == 3 and not (detect and (_in_slurm_step() or _on_tpu_vm())):
    return
  if 0 < len(missing) < 3:
    raise UserError(f"{', '.join(missing)} missing: give --coordinator, --num_processes and"
                    " --process_id, or none of them")  # fmt: skip
  if not missing and not 0 <= process_id < num_processes:
    raise UserError(f"--process_id={process_id}: must be from 0 to {num_processes - 1}")
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except (RuntimeError, ValueError, OSError) as error:
    if isinstance(error, ValueError) and len(missing) == 3 and not _in_slurm_step():
      return  # chips that belong to no slice
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"the processes cannot find each other ({reason}); start all of them with the same"
      " --coordinator and --num_processes, or alone with --nodetect_processes"
    ) from error


def several():
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def meet():
  """Returns once every process has come here, however late; fails when one of them died.

  Needs no devices, whose own patience with each other may end after seconds.
  """
  if several():
    from orbax.checkpoint import multihost  # here, as decoding processes import this module, too

    wait = multihost.get_barrier_sync_fn()
    wait(key=f"dgia_jax_{next(_meetings)}", timeout_ms=1000 * MEETING_SECONDS)


@contextlib.contextmanager
def termination():
  """Turns SIGTERM into a question that the training loop asks after every step.

  Yields:
    A function from the number of steps done to whether to save and stop. A SIGTERM that reaches
    one of several processes makes all of them stop, after the same step.
  """
  if several():
    # JAX listens for the signal itself and lets the processes agree on a step, without a
    # collective in the steps before it.
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = []
  previous = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  try:
    yield lambda _: bool(asked)
  finally:
    signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def failing_together():
  """Ends the process on an error: a `UserError` in one line with exit code 2.

  One of several processes leaves at once, without the farewell that would wait for the others,
  who cannot answer: they are inside a step that needs this process.
  """
  try:
    yield
  except UserError as error:
    _leave(2, f"error: {' '.join(str(error).split())}")
  except jax.errors.JaxRuntimeError as error:
    if not several():
      raise
    reason = str(error).strip().split("\n")[0][:300]
    _leave(
      3,
      f"error: process {jax.process_index()} of {jax.process_count()} stopped: another process"
      f" ended or could not be reached ({reason}); start all of them again with the same commands,"
      " training goes on from the last checkpoint",
    )
  except (Exception, KeyboardInterrupt):
    if not several():
      raise
    _leave(1, traceback.format_exc())


def _leave(code, message):
  print(message, file=sys.stderr, flush=True)
  if several():
    sys.stdout.flush()
    os._exit(code)
  sys.exit(code)


def _in_slurm_step():
  """Started by srun as one of several tasks; not so in an interactive allocation."""
  return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _on_tpu_vm():
  """TPU chips are here, may be used, and can be: then JAX knows the slice they belong to."""
  allowed = os.environ.get("JAX_PLATFORMS", "tpu")
  chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return "tpu" in allowed and bool(chips) and importlib.util.find_spec("libtpu") is not None
