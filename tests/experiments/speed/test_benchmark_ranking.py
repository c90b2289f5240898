"""The usual ranking in PyTorch gives our metrics."""

import numpy as np
import pytest

from dgia_jax.training.retrieval_metrics import retrieval_metrics_from_features
from experiments.speed.benchmark import ranking


def test_features_are_neither_hopeless_nor_perfect(monkeypatch):
  monkeypatch.setattr(ranking, "PERSONS", 20)
  arrays = ranking.data((60, 40), dim=128)
  assert [len(array) for array in arrays] == [60, 40, 60, 40]
  assert 20 < retrieval_metrics_from_features(*arrays)["R1"] < 100


def test_torch_equals_ours(monkeypatch):
  pytest.importorskip("torch")
  monkeypatch.setattr(ranking, "PERSONS", 20)
  arrays = ranking.data((60, 40), dim=16)
  ours, torch = retrieval_metrics_from_features(*arrays), ranking.torch_metrics(*arrays)
  assert ours.keys() == torch.keys()
  np.testing.assert_allclose(list(torch.values()), list(ours.values()), atol=1e-3)


def test_one_implementation(monkeypatch):
  monkeypatch.setitem(ranking.SIZES, "30x20", (30, 20))
  implementation = ranking.Ranking("ours", threads=1)
  facts = implementation.prepare("30x20")
  assert facts["metrics"]["R1"] > 0 and implementation.measure("30x20", 2) > 0
  assert implementation.peak_memory() >= facts["before"] > 0
