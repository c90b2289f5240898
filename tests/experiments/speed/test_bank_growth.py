"""The measured search is exact and scans blocks; the report says what was measured."""

import numpy as np
import pytest

from experiments.speed import bank_growth


def test_search_equals_brute_force_under_ties():
  check = bank_growth.check_exact(6000)
  assert check["equal"] and check["devices"] == 8
  assert check["ties"] > 50  # else the tie rule was not tested
  assert check["normal_equal"] > 0.99 and check["normal_difference"] < 1e-6


def test_a_wrong_search_is_noticed(monkeypatch):
  from dgia_jax.method import bank_search

  exact = bank_search.nearest
  late = lambda *args, **options: tuple(x[:, ::-1] for x in exact(*args, **options))
  monkeypatch.setattr(bank_search, "nearest", late)
  assert not bank_growth.check_exact(3000)["equal"]


def test_brute_force_takes_the_lowest_row_of_equals():
  rows = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], np.float32)
  scores, order = bank_growth.brute_force(np.array([[1, 0]], np.float32), rows, 3)
  assert order.tolist() == [[1, 3, 0]] and scores.tolist() == [[1, 1, 0]]


def test_temporaries_do_not_grow_with_the_bank():
  small, large = (bank_growth.measure(rows, 8, repeats=1) for rows in (100_000, 400_000))
  assert large["search_temporaries"] < 1.1 * small["search_temporaries"]
  assert large["search_temporaries"] < 64 * 400_000 / 8  # a quarter of one device's scores
  # On a CPU the compiler copies one of the update's fields of one number a row.
  added = 4 * (400_000 - 100_000) / 8
  assert large["update_temporaries"] < small["update_temporaries"] + 1.1 * added
  assert large["search"]["median"] > small["search"]["median"]
  assert small["bank_bytes"] == 100_000 * 4 * 19


def test_report(tmp_path):
  def point(rows, devices):
    time = {"median": rows * 1e-8, "min": rows * 1e-8, "max": rows * 1e-8, "repeats": 1}
    return {
      "rows": rows, "dim": 64, "devices": devices, "search": time, "update": time,
      "bank_bytes": bank_growth.bank_bytes(rows, 64), "search_temporaries": 1e6,
      "update_temporaries": 1e5, "aliased_bytes": 1, "peak_memory": 1e9,
    }  # fmt: skip

  points = [point(rows, devices) for rows in (10_000, 100_000, 10**6) for devices in (1, 8)]
  assert bank_growth.exponents(points) == pytest.approx({(64, 1): 1, (64, 8): 1})
  check = {"devices": 8, "rows": 9, "equal": False, "ties": 1, "normal_equal": 1.0,
           "normal_difference": 0.0}  # fmt: skip
  text = "\n".join(
    bank_growth.markdown(
      {
        "command": "c", "date": "d", "machine": "m", "points": points, "checks": [check],
        "left_out": [{"rows": 10**9, "dim": 512, "free_bytes": 2e9}],
      }
    )
  )  # fmt: skip
  assert "| 64 | 8 | 1,000,000 | 0.524 | 10.00 (10.00 to 10.00) | 10.0 |" in text
  assert "equal: NO" in text and "2.0 GB were free" in text and "8 device(s): 1.00" in text
  bank_growth.draw(points, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 10_000
  assert (tmp_path / "plot.pdf").read_bytes().startswith(b"%PDF")
