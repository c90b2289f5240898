"""The start-up is timed up to the first step, and the made-up dataset can be trained on."""

import time

import pytest

from experiments.speed import start_up


def test_the_table_adds_up():
  cold = {phase: (2.0, 3.0) for phase in start_up.PHASES}
  warm = cold | {"compile": (0.5, 0.25)}
  lines = start_up.table({"cold": cold, "warm": warm}).splitlines()
  assert lines[0].count("|") == lines[1].count("|") == 6
  assert lines[-3] == "| compile | 2.0 | 3.0 | 0.5 | 0.2 |"
  assert lines[-1] == "| total | 16.0 | 24.0 | 14.5 | 21.2 |"


@pytest.mark.integration
def test_a_small_dataset(tmp_path):
  start_up.write_files(tmp_path, {"train": 70, "val": 6, "test": 6})
  started = time.time()
  phases = start_up.start("cuhk_sized", tmp_path, started)
  assert tuple(phases) == start_up.PHASES
  total = sum(clock for clock, _ in phases.values())
  assert 0 < total <= time.time() - started
