"""Implementations for processes of the benchmark that compute nothing, some of which fail."""

import os


class Fake:
  """Ours, say; any part takes a second per pair of the batch."""

  def __init__(self, workload, threads):
    del workload, threads
    self.prepared = []

  def describe(self):
    return {"platform": "gpu", "device": "fake", "devices": 1, "version": "Fake 1"}

  def prepare(self, task):
    self.prepared.append(task)
    return {"tasks": len(self.prepared)}

  def measure(self, task, calls):
    assert task in self.prepared and calls > 0
    return float(task.batch_size)

  def drop(self, task):
    self.prepared.remove(task)


class FakeTorch(Fake):
  """Whose compiled way has no compiler, whose loops die, and whose batches of 16 need memory."""

  def prepare(self, task):
    if task.way == "compiled":
      raise ValueError("no compiler\nis installed")
    if task.way == "loops":
      os._exit(3)
    if task.batch_size == 16:
      raise MemoryError("out of memory")
    return super().prepare(task)
