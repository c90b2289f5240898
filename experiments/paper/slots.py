"""What each of several parallel trainings has for itself: a core, a GPU."""

import os
import pathlib
from typing import NamedTuple

from dgia_jax.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICE_FILES = pathlib.Path("/dev")  # holds nvidia0, nvidia1, ..


class Slot(NamedTuple):
  """The core and the GPU reserved for one job; None: shared with the others.

  Attributes:
    core: its number.
    gpu: as CUDA_VISIBLE_DEVICES names it.
  """

  core: int | None = None
  gpu: str | None = None

  @property
  def environment(self) -> dict[str, str] | None:
    """The environment of the job's process; None for that of this process."""
    return None if self.gpu is None else {**os.environ, VISIBLE: self.gpu}


def of_jobs(jobs: int, num_runs: int) -> list[Slot]:
  """One slot per job: a core each if there are as many cores, and a GPU each if there are GPUs.

  `--jobs 1` uses all GPUs. Fewer runs than jobs need fewer slots.

  Raises:
    UserError: there are fewer GPUs than slots.
  """
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
  if jobs == 1:
    return [Slot()]
  gpus, count = _gpus(), min(jobs, num_runs)
  if gpus and len(gpus) < count:
    raise UserError(
      f"--jobs {jobs}: each job trains on a GPU of its own, and there {_are(len(gpus))}: give"
      f" --jobs {len(gpus)}, or set JAX_PLATFORMS=cpu to train on the CPU"
    )
  has_own_core = jobs == len(cores)
  return [Slot(cores[i] if has_own_core else None, gpus[i] if gpus else None) for i in range(count)]


def _gpus() -> list[str]:
  """The NVIDIA GPUs that a training would use, counted without starting CUDA."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
    return []
  present = len(list(DEVICE_FILES.glob("nvidia[0-9]*")))
  if VISIBLE not in os.environ or not present:
    return [str(number) for number in range(present)]
  listed = []
  for name in os.environ[VISIBLE].split(","):
    if not name.strip() or name.strip().startswith("-"):  # as CUDA: ignore what follows
      break
    listed.append(name.strip())
  return listed


def _are(count: int) -> str:
  return "is 1" if count == 1 else f"are {count}"
