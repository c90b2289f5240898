"""The pipeline's speed counts what it says."""

import pytest

from experiments.speed.benchmark import input_speed
from tests.helpers import tiny_run


def test_rates_fit_together():
  pairs = tiny_run.splits()["train"]
  rates = input_speed.pairs_per_second(pairs, workers=0, seconds=0.3, batch_size=8)
  assert rates["pairs_per_second"] > 0 and rates["cores"] > 0
  assert rates["pairs_per_core_second"] * rates["cores"] == pytest.approx(rates["pairs_per_second"])


def test_drawn_jpegs(tmp_path, monkeypatch):
  monkeypatch.setattr(input_speed, "PEOPLE", 2)
  monkeypatch.setattr(input_speed, "LARGE", (48, 16))
  pairs = input_speed.stored_jpegs(tmp_path)
  assert pairs.images[0].shape == (48, 16, 3) and pairs.num_images == 12
