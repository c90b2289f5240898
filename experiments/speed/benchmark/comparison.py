"""Contenders in processes of their own, measured in turn."""

import contextlib
import importlib
import multiprocessing
import operator
import traceback

from dgia_jax.errors import UserError
from experiments.speed.benchmark import timing


class Worker:
  """A contender in a process of its own, so that neither memory nor threads are shared.

  Args:
    module, name: of the contender's class, imported over there only.
    *arguments: of the class, before `threads`.
    cores: the process is bound to so many cores; 0 leaves all.
  """

  def __init__(self, module, name, *arguments, cores=0):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, module, name, arguments, cores), daemon=False
    )
    self._process.start()
    theirs.close()
    self._name = name
    self._receive()

  def call(self, method, *arguments):
    """Calls a method of the contender and waits for its result.

    Raises:
      UserError: the process died, most likely for lack of memory.
      RuntimeError: the method failed; holds the traceback.
    """
    with contextlib.suppress(BrokenPipeError):  # what follows says that the process is gone
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

  def close(self):
    """Ends the process."""
    self._pipe.close()
    self._process.join()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()


def _serve(pipe, module, name, arguments, cores):
  """What a worker process does: build the contender, then answer calls until the pipe closes."""
  threads = timing.use_cores(cores)

  def answer(function, arguments):
    try:
      return False, function(*arguments)
    except Exception:  # whatever it is, the other side raises it
      return True, traceback.format_exc()

  made = []
  failed, text = answer(
    lambda: made.append(getattr(importlib.import_module(module), name)(*arguments, threads)), ()
  )
  pipe.send((failed, text))
  while made:
    try:
      method, arguments = pipe.recv()
    except EOFError:
      return
    pipe.send(answer(operator.methodcaller(method, *arguments), made))


def alternate(contenders, repeats, calls=1, warm=False):
  """Measures contenders in turn; who begins moves on by one every round.

  Args:
    contenders: {name: (Worker, part)}, prepared.
    repeats: measurements of each.
    calls: calls between two synchronisations; a measurement is the mean over them.
    warm: every turn begins with a call that is not timed. What a process holds grows cold while
      others run, and whoever waited longest would pay most for fetching it.

  Returns:
    {name: `timing.summary` in seconds per call}.
  """
  seconds, names = {name: [] for name in contenders}, list(contenders)
  for turn in range(repeats):
    for position in range(len(names)):
      name = names[(turn + position) % len(names)]
      worker, part = contenders[name]
      if warm:
        worker.call("measure", part, 1)
      seconds[name].append(worker.call("measure", part, calls))
  return {name: timing.summary(values) for name, values in seconds.items()}
