"""Clocks, memory and thread counts of a process, and the summary of repeated measurements."""

import os
import pathlib
import statistics
import time

import psutil

_STATUS = pathlib.Path("/proc/self/status")


def timed(function):
  """Seconds one call takes; the function must wait for its own results."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def summary(seconds):
  """{"median", "min", "max", "repeats"} of a list of measurements in seconds."""
  return {
    "median": statistics.median(seconds),
    "min": min(seconds),
    "max": max(seconds),
    "repeats": len(seconds),
  }


def use_cores(count):
  """Binds this process to its first `count` cores (0: all); to be called before JAX is imported.

  Returns:
    The number of cores left to it, which is how many threads a contender may use.
  """
  if not hasattr(os, "sched_setaffinity"):
    return os.cpu_count()
  cores = sorted(os.sched_getaffinity(0))
  if count:
    os.sched_setaffinity(0, cores[:count])
  return len(os.sched_getaffinity(0))


def peak_memory():
  """Most bytes of main memory this process ever held.

  Not from getrusage, which passes a parent's peak on to its children.
  """
  if _STATUS.exists():
    line = next(row for row in _STATUS.read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
  return psutil.Process().memory_info().rss


def available_memory():
  """Bytes of main memory that can be had now."""
  return psutil.virtual_memory().available
