"""A contender that fails is reported, and the others are measured."""

import pytest

from experiments.speed.benchmark import contenders as contenders_lib
from experiments.speed.benchmark.contenders import COMPILED, LOOPS, OURS, VECTORISED
from experiments.speed.benchmark.workload import Task
from tests.helpers.benchmark_workload import workload


@pytest.fixture
def lines(monkeypatch):
  fakes = {"ours": "Fake", "torch": "FakeTorch"}
  classes = {kind: ("tests.helpers.fake_contenders", name) for kind, name in fakes.items()}
  monkeypatch.setattr(contenders_lib, "CLASSES", classes)
  return []


@pytest.mark.integration
def test_failures_stop_nobody_else(lines):
  with contenders_lib.Contenders(workload(), repeats=2, show=lines.append) as contenders:
    assert [row["version"] for row in contenders.describe(with_torch=True)] == ["Fake 1"] * 2
    outcomes = contenders.measure("step", [OURS, COMPILED, LOOPS], 8)
    assert outcomes[OURS]["seconds"]["median"] == 8.0
    assert outcomes[COMPILED] == {"failed": "failed: ValueError: no compiler"}
    assert "exit code 3" in outcomes[LOOPS]["failed"]
    assert any("in the process of FakeTorch" in line for line in lines)
    # The process of PyTorch is started again.
    outcomes = contenders.measure("views", [OURS, VECTORISED], 4)
    assert outcomes[VECTORISED]["tasks"] == 1
    assert outcomes[OURS]["seconds"]["repeats"] == 2
    # The memory that is missing could be that of the other process, which therefore starts again.
    outcomes = contenders.measure("step", [OURS, VECTORISED], 16)
    assert outcomes[VECTORISED] == {"failed": "failed: MemoryError: out of memory"}
    assert outcomes[OURS]["tasks"] == 1 and outcomes[OURS]["seconds"]["median"] == 16.0
    assert contenders.measure("step", [OURS], 8)[OURS]["tasks"] == 1


def test_nothing_is_prepared_after_the_time():
  with contenders_lib.Contenders(workload(), seconds=1e-9) as contenders:
    outcomes = contenders.measure("step", [OURS])
  assert outcomes == {OURS: {"failed": "skipped: the time of --seconds is over"}}


def test_names_are_tasks():
  assert contenders_lib.task("ours", "step") == Task("step", "", 0)
  assert contenders_lib.task("ours all tokens", "step", 8) == Task("step", "all tokens", 8)
  assert contenders_lib.task("torch compiled", "views") == Task("views", "compiled", 0)


@pytest.mark.parametrize(
  "text, line",
  [
    (
      "Traceback:\n  File x\ntorch.OutOfMemoryError: CUDA\nsee above\n",
      "torch.OutOfMemoryError: CUDA",
    ),
    ("only this", "only this"),
    ("", "RuntimeError"),
  ],
)
def test_one_line_of_an_error(text, line):
  assert contenders_lib.one_line(RuntimeError(text)) == line
