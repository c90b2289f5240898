"""What is compared: the contenders, their processes, and how one that fails is reported."""

import concurrent.futures
import re
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dgia_jax.errors import UserError
from experiments.speed.benchmark import workers as workers_lib
from experiments.speed.benchmark.workers import Worker
from experiments.speed.benchmark.workload import Task, Workload

OURS, OURS_ALL_TOKENS = "ours", "ours all tokens"
COMPILED, VECTORISED, LOOPS = "torch compiled", "torch vectorised", "torch loops"
# Most informative first.
NAMES = (OURS, OURS_ALL_TOKENS, COMPILED, VECTORISED, LOOPS)
PACKAGE = "experiments.speed.benchmark"
# Modules and classes of the processes, by the first word of a contender's name.
CLASSES = {
  "ours": (f"{PACKAGE}.jax_step", "JaxImplementation"),
  "torch": (f"{PACKAGE}.torch_step", "TorchImplementation"),
}
_LINE = 160  # characters of a reported failure
_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception|Exhausted)\b")
_NO_MEMORY = ("out of memory", "RESOURCE_EXHAUSTED", "memory ran out")


def task(name: str, part: str, batch_size: int = 0) -> Task:
  """A part as the contender's process knows it."""
  return Task(part, name.partition(" ")[2], batch_size)


def one_line(error: Exception) -> str:
  """The line of an error, or of the traceback it holds, that says what happened."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  named = [line for line in lines if _EXCEPTION.match(line)]
  return (named or lines or [type(error).__name__])[-1][:_LINE]


class Contenders:
  """Prepares a part for contenders, measures them in turn, and clears it away.

  A contender that fails gets the entry {"failed": one line}; the others are measured all the same.

  Args:
    workload: is given to every process.
    cores: of each process; 0 means all.
    repeats: measurements per contender.
    calls: calls per measurement, by platform ("" for others); 0: see `_CALLS`.
    seconds: after which nothing more is prepared; 0: no limit.
    show: receives one line of progress at a time.
  """

  def __init__(
    self,
    workload: Workload,
    *,
    cores: int = 0,
    repeats: int = 5,
    calls: int = 0,
    seconds: float = 0,
    show: Callable[[str], None] = print,
  ):
    self._workload, self._cores, self._show = workload, cores, show
    self._repeats, self._calls = repeats, calls
    self._end = time.monotonic() + seconds if seconds else float("inf")
    self._workers = {}
    self.on_cpu = True  # `describe` knows better

  def __enter__(self) -> "Contenders":
    return self

  def __exit__(self, *exception: object) -> None:
    for kind in list(self._workers):
      self._close(kind)

  def describe(self, with_torch: bool) -> list[dict[str, Any]]:
    """What each process says about itself, ours first."""
    described = [self.worker(name).call("describe") for name in (OURS, LOOPS)[: 1 + with_torch]]
    self.on_cpu = described[0]["platform"] == "cpu"
    self._calls = self._calls or (1 if self.on_cpu else 10)
    return described

  def worker(self, name: str) -> Worker:
    """The process of a contender; started when it is first needed."""
    kind = name.partition(" ")[0]
    if kind not in self._workers:
      module, implementation = CLASSES[kind]
      self._workers[kind] = Worker(module, implementation, self._workload, cores=self._cores)
    return self._workers[kind]

  @property
  def time_is_over(self) -> bool:
    """Whether nothing more may be prepared."""
    return time.monotonic() > self._end

  def measure(
    self, part: str, names: Sequence[str], batch_size: int = 0, keep: bool = False
  ) -> dict[str, dict[str, Any]]:
    """{name: {"seconds": `timing.summary`, and facts such as the time to compile}} of a part.

    Args:
      part: see `report.PARTS`; or "step", "association", "product".
      names: of the contenders.
      batch_size: pairs; 0 means that of the config.
      keep: do not clear the part away; the caller will `drop` it.
    """
    self._show(f"{part}{f', batch {batch_size}' if batch_size else ''}: {', '.join(names)} ...")
    outcomes = self._measure(part, names, batch_size, keep)
    for name in names if not keep else ():
      # Processes share an accelerator: what failed beside another one is tried again alone.
      others = set(self._workers) - {name.partition(" ")[0]}
      if others and any(words in outcomes[name].get("failed", "") for words in _NO_MEMORY):
        for kind in others:
          self._close(kind)
        outcomes |= self._measure(part, [name], batch_size, keep)
    return outcomes

  def drop(self, part: str, names: Collection[str], batch_size: int = 0) -> None:
    """Frees a part that was kept."""
    for name in names:
      self.worker(name).call("drop", task(name, part, batch_size))

  def _measure(self, part, names, batch_size, keep):
    outcomes = self._prepare(part, names, batch_size)
    ready = {
      name: (self.worker(name), task(name, part, batch_size))
      for name in names
      if "failed" not in outcomes[name]
    }

    def on_failure(name, error):
      outcomes[name] = self._failure(name, error)

    seconds = workers_lib.measure_in_turn(ready, self._repeats, self._calls, True, on_failure)
    for name, summary in seconds.items():
      outcomes[name] |= {"seconds": summary}
    if not keep:
      self.drop(part, seconds, batch_size)
    return outcomes

  def _prepare(self, part, names, batch_size):
    """{name: facts}. On an accelerator, both kinds compile at the same time."""
    outcomes, of_kind = {}, {}
    for name in names:
      of_kind.setdefault(name.partition(" ")[0], []).append(name)

    def prepare(some):
      for name in some:
        outcomes[name] = self._prepare_one(name, part, batch_size)

    with concurrent.futures.ThreadPoolExecutor(1 if self.on_cpu else len(of_kind) or 1) as pool:
      list(pool.map(prepare, of_kind.values()))
    return outcomes

  def _prepare_one(self, name, part, batch_size):
    if self.time_is_over:
      return {"failed": "skipped: the time of --seconds is over"}
    start = time.monotonic()
    try:
      facts = self.worker(name).call("prepare", task(name, part, batch_size))
    except (RuntimeError, UserError) as error:
      return self._failure(name, error)
    return {**facts, "prepared_in": time.monotonic() - start}

  def _failure(self, name, error):
    if isinstance(error, UserError):  # the process died
      self._close(name.partition(" ")[0])
    else:
      self._show(f"{name}: {error}")
    return {"failed": f"failed: {one_line(error)}"}

  def _close(self, kind):
    self._workers.pop(kind).close()
