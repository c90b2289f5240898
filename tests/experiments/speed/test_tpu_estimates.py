"""The table of estimates is computed from the facts of a compiled step."""

import pytest

from dgia_jax.dry_run.hlo_estimates import COPIES, OTHERS, PRODUCTS
from experiments.speed import tpu_estimates


def test_the_table():
  facts = {
    "device": "TPU v5 lite",
    "batch": 64,
    "estimated_cycles": {PRODUCTS: 200_000_000, COPIES: 60_000_000, OTHERS: 40_600_000},
    "product_flops": 14e12,
    "padded_product_flops": 17.5e12,
    "memory_bytes": {"total": 2**33},
    "compile_seconds": 460.2,
  }
  row = tpu_estimates.table({"v5e:1x1": facts})[-1]
  # 300.6 million cycles at 1.503 GHz are 0.2 s, in which the peak is 39.4 TFLOP.
  assert row == "| v5e:1x1 | 64 | 301 | 200 | 60 | 41 | 200 | 36% | 14.0 | 20% | 8.0 | 460.2 |"


@pytest.mark.parametrize(
  ("chip", "kind", "gigahertz"),
  [
    ("v5e:1x1", "TPU v5 lite", 1.5),
    ("v5p:1x1x1", "TPU v5", 1.75),
    ("v6e:1x1", "TPU v6 lite", 1.75),
  ],
)
def test_clocks(chip, kind, gigahertz):
  assert tpu_estimates.clock(chip, kind) == pytest.approx(gigahertz * 1e9, rel=0.01)


def test_an_unknown_chip_is_one_line(monkeypatch, tmp_path, capsys):
  command = ["tpu_estimates", "--chips", "v9:1x1", "--out", str(tmp_path / "report")]
  monkeypatch.setattr("sys.argv", command)
  assert tpu_estimates.main() == 2
  assert capsys.readouterr().err.startswith("error: --topology=v9:1x1")
  assert not list(tmp_path.iterdir())
