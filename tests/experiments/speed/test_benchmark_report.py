"""Measurements to tables and targets."""

from experiments.speed.benchmark import report
from experiments.speed.benchmark import targets as targets_lib


def seconds(median):
  return {"median": median, "min": median / 2, "max": 2 * median, "repeats": 3}


def results(**changed):
  def implementation(time):
    parts = dict.fromkeys(report.PARTS, {"seconds": seconds(time / 10)})
    return {
      "seconds": seconds(time), "parts": parts, "peak_memory": 2e9, "compile": 3.0, "flops": 2.7e9,
    }  # fmt: skip

  names = ("ours", "torch loops")
  measurements = {
    "command": "python -m experiments.speed.benchmark --out x",
    "date": "2026-11-24",
    "machine": {
      "description": "a chip", "platform": "gpu", "threads": 2, "versions": ["JAX 1", "PyTorch 2"],
    },
    "settings": {
      "model": "tiny", "image_size": "16 x 16", "context_length": 8, "dtype": "float32",
      "remat": False, "batch_size": 8, "num_pairs": 100, "association_batch": 16,
      "caption_tokens": 27.9,
    },
    "agreement": {
      "ours": {"loss_itc": 1.0}, "torch loops": {"loss_itc": 1.0}, "largest_difference": 1e-6,
    },
    "step": {
      "implementations": {
        **{name: implementation(time) for name, time in zip(names, (2, 5), strict=True)},
        "torch compiled": {"failed": "failed: no compiler"},
      },
      "input_wait": {"seconds": 2.0, "wait": 0.5}, "flops": 3e9, "peak_flops": 2e9,
      "product_flops": {"ours": 1e9},
    },
    "batches": [
      {"batch_size": 16, "implementations": {
        "ours": implementation(3), "torch loops": {"failed": "failed: out of memory"},
      }},
    ],
    "association": {"dim": 16, "implementations": {
      "ours": {"seconds": seconds(1)}, "torch loops": {"seconds": seconds(7)},
    }},
    "ranking": {
      "9x9": {"implementations": {
        "ours": {"seconds": seconds(1), "memory": 1e9},
        "torch": {"seconds": seconds(3), "memory": 2e9},
      }},
      "99x99": {"implementations": {
        "ours": {"seconds": seconds(1), "memory": 1e9}, "torch": {"skipped": "too large"},
      }},
    },
    "input": [{"dataset": "d", "workers": 2, "pairs_per_second": 1000.0,
               "pairs_per_core_second": 500.0, "cores": 2.0}],
  } | changed  # fmt: skip
  return measurements | {"targets": targets_lib.targets(measurements)}


def test_targets_on_an_accelerator():
  met = {row["target"]: (row["measured"], row["met"]) for row in results()["targets"]}
  assert met == {
    "full step against torch loops": ("2.50 x", True),
    "association + bank against torch loops": ("7.00 x", False),
    "ranking 9x9": ("3.00 x", True),
    "association + bank, share of the step": ("10.00 %", False),
    "MFU of the step, batch 8": ("67.5 %", True),
    "MFU of the step, batch 16": ("45.0 %", False),
  }


def test_targets_of_a_processor_and_of_ours_alone():
  measurements = results()
  measurements["machine"]["platform"] = "cpu"
  measurements["step"]["implementations"].pop("torch loops")
  names = [row["target"] for row in targets_lib.targets(measurements)]
  assert names == ["association + bank against torch loops", "ranking 9x9"]


def test_tables_hold_the_numbers():
  text = report.markdown(results())
  for piece in (
    "| ours | 2,000.0 (1,000.0 to 4,000.0) | 4.00 | 90.0 % | 1 | 67.5 % | 2.00 GB | 3.0 | 1.00 |",
    "| torch compiled | failed: no compiler | - | - | - | - | - | - | - |",
    "| 16 | ours | 3,000.0 (1,500.0 to 6,000.0) | 5.33 | 45.0 % | 2.00 GB | 1.00 |",
    "| 16 | torch loops | failed: out of memory | - | - | - | - |",
    "| image tower | 200.0 ms, 10.0 % | 500.0 ms, 10.0 % |",
    "| rest (together minus parts) | +50.0 % | +50.0 % |",
    "| input wait | 500.0 ms, 25.0 % | - |",
    "| 99x99 | torch | too large | - | - |",
    "| d | 2 | 1,000 | 2.00 | 500 |",
    "| association + bank against torch loops | at least 8 x | 7.00 x | NO |",
  ):
    assert piece in text, piece


def test_parts_that_were_not_measured_have_no_table():
  measurements = results()
  for name in ("step", "agreement", "ranking", "association", "batches"):
    del measurements[name]
  measurements["targets"] = targets_lib.targets(measurements)
  titles = [table.title for table in report.make_tables(measurements)]
  assert titles == ["Input"] and measurements["targets"] == []


def test_pairs_per_second_have_a_target_on_known_accelerators():
  measurements = results()
  measurements["machine"]["description"] = "NVIDIA H200"
  rows = {row["target"]: row["needed"] for row in targets_lib.targets(measurements)}
  assert rows["pairs/s, batch 8"] == rows["pairs/s, batch 16"] == "at least 2,600"


def test_targets_leave_out_what_failed():
  measurements = results()
  measurements["step"]["implementations"]["ours"] = {"failed": "failed: out of memory"}
  del measurements["batches"]
  names = [row["target"] for row in targets_lib.targets(measurements)]
  assert names == ["association + bank against torch loops", "ranking 9x9"]
  assert "| ours | failed: out of memory | - |" in report.markdown(
    measurements | {"skipped": ["input"]}
  )
