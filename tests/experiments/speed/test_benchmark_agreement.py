"""PyTorch's step and ours on the same numbers."""

import dataclasses

import pytest

from experiments.speed.benchmark import suite
from experiments.speed.benchmark import workload as workload_lib
from tests.helpers.benchmark_workload import workload

torch = pytest.importorskip("torch")


def test_implementations_compute_the_same():
  from experiments.speed.benchmark import agreement

  comparison = agreement.compare(workload())
  assert comparison["largest_difference"] < workload_lib.TOLERANCE
  ours = comparison["ours"]
  assert ours["global_relations"] > 0.5 and ours["bank_change"] > 0
  assert len({round(ours[f"loss_{name}"], 4) for name in ("itc", "local", "global")}) == 3


def test_an_agreement_is_handed_on():
  comparison = {"ours": {"loss_itc": 1.0}, "largest_difference": workload_lib.TOLERANCE / 2}
  assert suite.check_agreement(comparison) is comparison


@pytest.mark.parametrize("ours, theirs", [(1.0, float("nan")), (float("nan"), 1.0)])
def test_a_number_that_is_none_is_noticed(ours, theirs):
  from experiments.speed.benchmark import agreement

  outcomes = {"ours": {"loss": 2.0, "norm": ours}, "torch": {"loss": 2.0, "norm": theirs}}
  comparison = {"largest_difference": agreement.largest_difference(outcomes)}
  with pytest.raises(RuntimeError, match="do not compute the same"):
    suite.check_agreement(comparison)
  outcomes["torch"]["norm"] = outcomes["ours"]["norm"] = 1.0
  assert agreement.largest_difference(outcomes) == 0


def test_another_threshold_is_noticed(monkeypatch):
  from experiments.speed.benchmark import agreement

  correct = agreement._torch_step

  def other(small_workload, start, way):
    config = small_workload.config
    config.global_association.threshold = 0.95
    return correct(dataclasses.replace(small_workload, fields=config.to_dict()), start, way)

  monkeypatch.setattr(agreement, "_torch_step", other)
  comparison = agreement.compare(workload())
  assert comparison["largest_difference"] > workload_lib.TOLERANCE
  with pytest.raises(RuntimeError, match="do not compute the same"):
    suite.check_agreement(comparison)
