"""Runs each implementation in its own process and measures them in turn."""

import contextlib
import importlib
import multiprocessing
import operator
import traceback
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, runtime_checkable

from dgia_jax.errors import UserError
from experiments.speed.benchmark import timing


@runtime_checkable
class Callee(Protocol):
  """Something whose methods are called by name, as those of a `Worker`."""

  def call(self, method: str, /, *arguments: Any) -> Any: ...


class Worker:
  """An implementation in its own process, so that it shares neither memory nor threads.

  Args:
    module, name: of the implementation's class, imported in the new process only.
    *arguments: of the class, before `threads`.
    cores: number of cores the process is bound to; 0 means all.
  """

  def __init__(self, module: str, name: str, *arguments: Any, cores: int = 0):
    context = multiprocessing.get_context("spawn")
    self._pipe, worker_pipe = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(worker_pipe, module, name, arguments, cores), daemon=False
    )
    self._process.start()
    worker_pipe.close()
    self._name = name
    self._receive()

  def call(self, method: str, *arguments: Any) -> Any:
    """Calls a method of the implementation and waits for its result.

    Raises:
      UserError: the process died, most likely because memory ran out.
      RuntimeError: the method failed; the message holds the traceback.
    """
    with contextlib.suppress(BrokenPipeError):  # `_receive` reports the dead process
      self._pipe.send((method, arguments))
    return self._receive()

  def _receive(self):
    try:
      failed, result = self._pipe.recv()
    except (EOFError, ConnectionResetError) as error:
      self._process.join()
      raise UserError(
        f"the process of {self._name} ended with exit code {self._process.exitcode}: most likely "
        "memory ran out; lower config.batch_size or --num_pairs"
      ) from error
    if failed:
      raise RuntimeError(f"in the process of {self._name}:\n{result}")
    return result

  def close(self) -> None:
    """Ends the process."""
    self._pipe.close()
    self._process.join()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()


def _serve(pipe: Any, module: str, name: str, arguments: tuple, cores: int) -> None:
  """Main function of a worker: builds the implementation, answers calls until the pipe closes."""
  threads = timing.use_cores(cores)

  def answer(function, arguments):
    try:
      return False, function(*arguments)
    except Exception:  # any error is raised in the parent process
      return True, traceback.format_exc()

  instance = []
  failed, text = answer(
    lambda: instance.append(getattr(importlib.import_module(module), name)(*arguments, threads)), ()
  )
  pipe.send((failed, text))
  while instance:
    try:
      method, arguments = pipe.recv()
    except EOFError:
      return
    pipe.send(answer(operator.methodcaller(method, *arguments), instance))


def measure_in_turn(
  implementations: Mapping[str, tuple[Callee, Hashable]],
  repeats: int,
  calls: int = 1,
  warm: bool = False,
  on_failure: Callable[[str, Exception], None] | None = None,
) -> dict[str, dict[str, float]]:
  """Measures implementations in turn; every round starts with the next one.

  Args:
    implementations: {name: (worker, part)}, prepared.
    repeats: measurements per implementation.
    calls: calls between two synchronisations; a measurement is the mean over them.
    warm: start every turn with an untimed call, because caches go cold while others run.
    on_failure: receives the name and error of an implementation that fails, which has no further
      turns; None raises the error.

  Returns:
    {name: `timing.summary` in seconds per call}.
  """
  seconds, names = {name: [] for name in implementations}, list(implementations)
  for turn in range(repeats):
    for position in range(len(names)):
      name = names[(turn + position) % len(names)]
      if name not in seconds:
        continue
      worker, part = implementations[name]
      try:
        if warm:
          worker.call("measure", part, 1)
        seconds[name].append(worker.call("measure", part, calls))
      except (RuntimeError, UserError) as error:
        if on_failure is None:
          raise
        del seconds[name]
        on_failure(name, error)
  return {name: timing.summary(values) for name, values in seconds.items()}
