"""Several processes as one run: they find each other, stop together and fail together.

Every process runs the same command. On a Cloud TPU slice and in a SLURM step they find each other
without further flags; elsewhere three flags identify them. If a process dies, the others end with
an error within about `HEARTBEAT_SECONDS` instead of waiting for it. The same commands, started
again, continue from the last checkpoint.
"""

import contextlib
import glob
import importlib.util
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from dgia_jax import cli, full_disk, stop_signals
from dgia_jax.errors import UserError

HEARTBEAT_SECONDS = 30  # a process that is silent for this long counts as dead
SHUTDOWN_SECONDS = 60  # how long a process that has finished waits for the others
VISIBLE_SECONDS = 90  # within which a network disk shows files that another machine has written
BARRIER_SECONDS = 24 * 3600  # how long processes wait for one that, for example, builds the dataset

# In what the runtime raises when a device's memory is full.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")

_barriers = itertools.count()


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  detect: bool = True,
) -> None:
  """Joins the processes of a run; must be called before anything uses a device.

  Args:
    coordinator: HOST:PORT at which process 0 can be reached.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    detect: look for a Cloud TPU slice or a SLURM step if no coordinator is given.

  Raises:
    UserError: some of the three are missing or out of range, or the processes cannot find each
      other.
  """
  flags = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  missing = [f"--{name}" for name, value in flags.items() if value is None]
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
      return  # TPU chips that belong to no slice
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"the processes cannot find each other ({reason}); start all of them with the same"
      " --coordinator and --num_processes, or one alone with --nodetect_processes"
    ) from error


def several() -> bool:
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def wait_for_all() -> None:
  """Returns once every process has called this, however late; fails if one of them died.

  Uses no devices, because collectives between devices can time out after seconds.
  """
  if several():
    from orbax.checkpoint import multihost  # late: decoding processes import this module, too

    wait = multihost.get_barrier_sync_fn()
    wait(key=f"dgia_jax_{next(_barriers)}", timeout_ms=1000 * BARRIER_SECONDS)


def decided_by_first_process(decide: Callable[[], int]) -> int:
  """The number that process 0 decides on, however long that takes; every process must call this.

  Raises:
    UserError: process 0 could not decide.
  """
  if not several():
    return decide()
  decision, error = 0, None
  if jax.process_index() == 0:
    try:
      decision = decide()
    except UserError as raised:
      error = raised
  wait_for_all()
  failed, decision = multihost_utils.broadcast_one_to_all(
    np.array([error is not None, decision], np.int32)
  ).tolist()
  if error is not None:
    raise error
  if failed:
    raise UserError("process 0 stopped; its message says why")
  return decision


def first_that(condition: bool) -> int | None:
  """The first process for which this holds, if any; every process must call this, however late."""
  if not several():
    return 0 if condition else None
  wait_for_all()
  holds = from_every_process(np.array(condition, np.int32))
  return int(np.argmax(holds)) if holds.any() else None


def wait_until_visible(is_visible: Callable[[], bool], place: str) -> None:
  """Returns once this process sees what process 0 has written to a disk that they share.

  Args:
    is_visible: whether it does.
    place: the folder, or the flag and the folder, for the error.

  Raises:
    UserError: it still does not after `VISIBLE_SECONDS`.
  """
  deadline = time.time() + VISIBLE_SECONDS
  while not is_visible():
    if time.time() > deadline:
      raise UserError(
        f"{place}: process {jax.process_index()} does not see the files that process 0 has written:"
        " give a folder that all processes share"
      )
    time.sleep(0.1)


def from_every_process(array: np.ndarray) -> np.ndarray:
  """A small array of each process, stacked; every process must call this and gets the same."""
  return np.asarray(multihost_utils.process_allgather(array, tiled=False))


def summed(array: np.ndarray) -> np.ndarray:
  """The sum of an array over all processes; every process must call this and gets the same."""
  # What the sources give is summed, and here every process is one.
  return np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=True))


@contextlib.contextmanager
def termination(
  notify: Callable[[str], None] = cli.print_to_stderr,
) -> Iterator[Callable[[int], bool]]:
  """Lets SIGTERM and Ctrl-C stop training after the current step; see `stop_signals`.

  After the block, both end a single process again. One of several goes on to ignore SIGTERM,
  because JAX's handler stays.

  Args:
    notify: receives one line when the first signal arrives.

  Yields:
    A function of the number of steps done, to call after each step and again after other work:
    whether to save and stop. A signal to one of several processes makes all of them stop after the
    same step.
  """
  if not several():
    with stop_signals.watched(notify) as signals:
      yield lambda step: signals.stop_requested()
    return
  # JAX listens for SIGTERM and lets the processes agree on a step that none has reached, without a
  # collective before it. Ctrl-C therefore becomes a SIGTERM. Orbax asks JAX, too, with the step of
  # a checkpoint: other numbers than steps would be mixed up with these.
  terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
  with stop_signals.watched(notify, (signal.SIGINT,), terminate) as signals:

    def stop_requested(step: int) -> bool:
      signals.stop_requested()
      return multihost_utils.reached_preemption_sync_point(step)

    yield stop_requested


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
  """Ends the process on an error, with one line and an exit code where the user can act on it.

  A process that fails as one of several ends at once. The normal shutdown would block: it waits for
  the other processes, which wait for this one inside a step.
  """
  try:
    yield
  except UserError as error:
    if full_disk.is_cause(error):  # threads that still write would complain during a normal exit
      stop_signals.leave(2, cli.error_line(error))
    _leave(2, cli.error_line(error))
  except KeyboardInterrupt:
    stop_signals.leave(130, "stopped")
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).strip().split("\n")[0][:300]
    if any(text in str(error) for text in _OUT_OF_MEMORY):
      _leave(
        2,
        f"error: a device of process {jax.process_index()} has too little memory ({reason}); set"
        " config.model.remat=True, raise config.gradient_accumulation or config.mesh.fsdp, or use"
        " more devices; in an evaluation, lower config.eval.batch_size:"
        " docs/scaling.md#when-memory-is-short",
      )
    if not several():
      raise
    _leave(
      3,
      f"error: process {jax.process_index()} of {jax.process_count()} stopped: another process"
      f" ended or could not be reached ({reason}); start all of them again with the same commands:"
      " training continues from the last checkpoint",
    )
  except Exception as error:
    if full_disk.is_cause(error):
      reason = " ".join(str(error).split())[:300]
      _leave(2, f"error: the disk is full ({reason}); free some space and run the command again")
    if not several():
      raise
    _leave(1, traceback.format_exc())


def _leave(code: int, message: str) -> NoReturn:
  if several():
    stop_signals.leave(code, message)
  print(message, file=sys.stderr, flush=True)
  sys.exit(code)


def _in_slurm_step() -> bool:
  """Whether srun started this process as one of several tasks; not so in an `salloc` shell."""
  return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _on_tpu_vm() -> bool:
  """Whether TPU chips are attached and usable; JAX then knows the slice they belong to."""
  allowed = os.environ.get("JAX_PLATFORMS", "tpu")
  chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return "tpu" in allowed and bool(chips) and importlib.util.find_spec("libtpu") is not None
