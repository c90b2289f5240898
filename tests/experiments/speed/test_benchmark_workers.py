"""Processes of implementations, and whose turn it is."""

import os

import pytest

from dgia_jax.errors import UserError
from experiments.speed.benchmark import workers as workers_lib


class _Clock:
  def __init__(self, name, turns):
    self._name, self._turns = name, turns

  def call(self, method, part, calls):
    assert method == "measure"
    self._turns.append(self._name)
    return len(self._turns) / calls


def test_implementations_take_turns():
  turns = []
  clocks = {name: (_Clock(name, turns), "step") for name in "ab"}
  summaries = workers_lib.measure_in_turn(clocks, repeats=3)
  assert "".join(turns) == "abbaab"
  assert summaries["a"] == {"median": 4, "min": 1, "max": 5, "repeats": 3}


class _Failing:
  def call(self, method, part, calls):
    raise RuntimeError("no memory")


def test_one_that_fails_has_no_further_turns():
  turns, failures = [], []
  clocks = {name: (_Clock(name, turns), "step") for name in "ac"} | {"b": (_Failing(), "step")}
  note = lambda name, error: failures.append((name, str(error)))
  summaries = workers_lib.measure_in_turn(clocks, repeats=2, on_failure=note)
  assert failures == [("b", "no memory")]
  assert summaries.keys() == {"a", "c"} and summaries["a"]["repeats"] == 2
  with pytest.raises(RuntimeError, match="no memory"):
    workers_lib.measure_in_turn(clocks, repeats=1)


def test_a_warm_turn_begins_with_a_call_that_does_not_count():
  turns = []
  clocks = {name: (_Clock(name, turns), "step") for name in "ab"}
  summaries = workers_lib.measure_in_turn(clocks, repeats=2, warm=True)
  assert "".join(turns) == "aabbbbaa"
  assert summaries["b"] == {"median": 5, "min": 4, "max": 6, "repeats": 2}


def test_a_worker_answers_fails_and_ends():
  # The class gets its arguments, then the number of threads.
  with workers_lib.Worker("fractions", "Fraction", 7, cores=1) as worker:
    assert worker.call("limit_denominator", 5) == 7
    with pytest.raises(RuntimeError, match="no_such_method"):
      worker.call("no_such_method")
    assert worker.call("__add__", 1) == 8
  with pytest.raises(RuntimeError, match="ValueError: math domain error"):
    workers_lib.Worker("math", "log", -1)


def test_a_worker_that_dies_is_reported():
  with workers_lib.Worker("fractions", "Fraction", 1, cores=1) as worker:
    os.kill(worker._process.pid, 9)
    with pytest.raises(UserError, match="exit code -9"):
      worker.call("limit_denominator", 5)
