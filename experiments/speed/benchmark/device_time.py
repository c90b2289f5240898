"""Where an accelerator's time goes: a profiler's trace, summed by kind of kernel."""

import gzip
import json
import pathlib
from typing import Any

# Kinds by what names of kernels contain, the first match counts; all else is "between products".
_KINDS = (
  ("copies and fills", ("nchwtonhwc", "nhwctonchw")),
  ("attention", ("sdpa", "flash", "fmha", "cudnn::fusion", "cudnn_generated")),
  (
    "matrix products",
    ("gemm", "gemv", "nvjet", "cutlass", "xmma", "cublas", "splitk", "convol", "dot"),
  ),
  ("attention", ("cudnn",)),
  ("copies and fills", ("memcpy", "memset", "copy")),
)
_STORED_KERNELS = 60
BETWEEN, IDLE = "between products", "idle"
# Tracks that list the work of a device once: a GPU's streams, a TPU's operations.
_TRACKS = ("Stream", "XLA Ops")


def kind_of(kernel: str) -> str:
  """The kind of a kernel, by its name."""
  lower = kernel.lower()
  return next((kind for kind, words in _KINDS if any(w in lower for w in words)), BETWEEN)


def read(folder: pathlib.Path | str) -> list[tuple[str, float, float]]:
  """What ran on the first device: [(kernel, start, duration)] in seconds.

  Args:
    folder: as `jax.profiler.trace` was given.

  Returns:
    An empty list where the trace knows no accelerator.
  """
  traces = sorted(pathlib.Path(folder).rglob("*.trace.json.gz"))
  if not traces:
    return []
  with gzip.open(traces[-1], "rt", encoding="utf-8") as file:
    events = json.load(file)["traceEvents"]
  names = {"process_name": {}, "thread_name": {}}
  for event in events:
    if event.get("name") in names:
      key = event["pid"], event.get("tid") if event["name"] == "thread_name" else None
      names[event["name"]][key] = event["args"]["name"]
  devices = [pid for (pid, _), name in names["process_name"].items() if "/device:" in name]
  tracks = {key for key, name in names["thread_name"].items() if name.startswith(_TRACKS)}
  return [
    (event["name"], event["ts"] / 1e6, event["dur"] / 1e6)
    for event in events
    if event.get("ph") == "X"
    and event["pid"] in devices[:1]
    and (event["pid"], event["tid"]) in tracks
  ]


def by_kind(kernels: list[tuple[str, float, float]], steps: int) -> dict[str, float]:
  """Seconds per step by kind, largest first, with the idle time last.

  Args:
    kernels: from `read`; not empty.
    steps: steps that the trace holds.
  """
  seconds = {}
  for name, _, duration in kernels:
    seconds[kind_of(name)] = seconds.get(kind_of(name), 0.0) + duration / steps
  first = min(start for _, start, _ in kernels)
  last = max(start + duration for _, start, duration in kernels)
  ordered = dict(sorted(seconds.items(), key=lambda item: -item[1]))
  # Kernels of several streams may overlap, and then sum to more than the time that passed.
  return ordered | {IDLE: max((last - first) / steps - sum(seconds.values()), 0.0)}


def by_kernel(kernels: list[tuple[str, float, float]], steps: int) -> list[dict[str, Any]]:
  """The kernels that take most time: [{"kernel", "kind", "count", "ms"}] per step, largest first.

  Args:
    kernels, steps: as in `by_kind`.
  """
  durations = {}
  for name, _, duration in kernels:
    durations.setdefault(name, []).append(duration)
  rows = [
    {
      "kernel": name,
      "kind": kind_of(name),
      "count": len(each) / steps,
      "ms": 1e3 * sum(each) / steps,
    }
    for name, each in durations.items()
  ]
  return sorted(rows, key=lambda row: -row["ms"])[:_STORED_KERNELS]
