"""Clocks, memory and cores of a process, and the summary of repeated measurements."""

import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import psutil

_STATUS = pathlib.Path("/proc/self/status")


def timed(function: Callable[[], object]) -> float:
  """Seconds per call of a function that waits for its own results."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def summary(seconds: Sequence[float]) -> dict[str, float]:
  """{"median", "min", "max", "repeats"} of a list of measurements in seconds."""
  return {
    "median": statistics.median(seconds),
    "min": min(seconds),
    "max": max(seconds),
    "repeats": len(seconds),
  }


def use_cores(count: int) -> int:
  """Binds this process to its first `count` cores (0: all); to be called before JAX is imported.

  Returns:
    The number of cores left to it, which is how many threads an implementation may use.
  """
  if not hasattr(os, "sched_setaffinity"):
    return os.cpu_count()
  cores = sorted(os.sched_getaffinity(0))
  if count:
    os.sched_setaffinity(0, cores[:count])
  return len(os.sched_getaffinity(0))


def peak_memory() -> int:
  """Peak bytes of main memory of this process.

  Not from getrusage, whose peak a child inherits from its parent.
  """
  if _STATUS.exists():
    line = next(row for row in _STATUS.read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
  return psutil.Process().memory_info().rss


def available_memory() -> int:
  """Bytes of main memory that are available now."""
  return psutil.virtual_memory().available
