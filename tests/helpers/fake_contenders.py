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
    return {"tasks": len(self.prepared), "peak_memory": 1e9, "text_tokens": 4.0}

  def measure(self, task, calls):
    assert task in self.prepared and calls > 0
    return float(task.batch_size or 8)

  def profile(self, task, steps):
    kernels = [{"kernel": "fusion", "kind": "between products", "count": steps, "ms": 2.0}]
    return {"device_time": {"between products": 0.5, "idle": 0.5}, "kernels": kernels}

  def input_wait(self, steps):
    raise ValueError(f"no input for {steps} steps")

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
