"""From flags to files, with contenders that compute nothing and fail here and there."""

import json
import types

import pytest

from dgia_jax.errors import UserError
from experiments.speed.benchmark import contenders as contenders_lib
from experiments.speed.benchmark import suite
from tests.helpers.benchmark_workload import workload


def options(**changed):
  tiny = workload()
  config = tiny.config
  config.model.name = "tiny"
  return types.SimpleNamespace(
    **{
      "config": config, "num_pairs": 64, "association_batch": 16, "batch_sizes": [],
      "implementations": None, "seconds": 0.0, "threads": 0, "repeats": 1, "calls": 0,
      "out": None, "part": ["step"], "ranking_sizes": None, "workers": [], "input_seconds": 1.0,
    } | changed
  )  # fmt: skip


@pytest.mark.integration
def test_all_parts_on_an_accelerator(tmp_path, monkeypatch):
  pytest.importorskip("torch")
  fakes = {"ours": "Fake", "torch": "FakeTorch"}
  classes = {kind: ("tests.helpers.fake_contenders", name) for kind, name in fakes.items()}
  monkeypatch.setattr(contenders_lib, "CLASSES", classes)
  monkeypatch.setattr(suite, "_agreement", lambda *_: {"agreement": {"failed": "no: differ"}})
  parts = ["step", "shares", "association"]
  with pytest.raises(RuntimeError, match="no: differ"):
    suite.main(options(part=parts, batch_sizes=["8", "16"], out=str(tmp_path / "report")))
  results = json.loads((tmp_path / "report.json").read_text())
  step = results["step"]["implementations"]
  assert step.keys() == set(contenders_lib.NAMES)
  assert step["torch compiled"]["failed"] == "failed: ValueError: no compiler"
  assert step["ours"]["flops"] < step["ours all tokens"]["flops"]
  assert [row["batch_size"] for row in results["batches"]] == [8, 16]
  text = (tmp_path / "report.md").read_text()
  for piece in (
    "| no: differ |", "| torch compiled | failed: ValueError: no compiler | - |", "| fusion |",
    "| 16 | torch vectorised | failed: MemoryError: out of memory |", "| image tower |",
    "Not measured: input wait (ValueError: no input for 100 steps)", "## Association + bank",
  ):  # fmt: skip
    assert piece in text, piece


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"batch_sizes": ["9x"]}, "--batch_sizes: '9x'"),
    ({"batch_sizes": ["65"]}, "--batch_sizes: '65'"),
    ({"implementations": ["theirs"]}, "--implementations: 'theirs'"),
    ({"workers": ["2", "x"]}, "--workers: 'x'"),
    ({"workers": ["-1"]}, "--workers: '-1'"),
    ({"ranking_sizes": ["1x2"]}, "--ranking_sizes: '1x2' is none of"),
  ],
)
def test_flags_are_checked_first(fields, message):
  with pytest.raises(UserError, match=message):
    suite.main(options(**fields))
