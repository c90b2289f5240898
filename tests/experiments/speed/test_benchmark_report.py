"""Measurements to tables and targets."""

from experiments.speed.benchmark import report


def seconds(median):
  return {"median": median, "min": median / 2, "max": 2 * median, "repeats": 3}


def results(**changed):
  def implementation(time):
    parts = dict.fromkeys(report.PARTS, seconds(time / 10))
    return {"seconds": seconds(time), "parts": parts, "peak_memory": 2e9, "compile": 3.0}

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
    },
    "agreement": {
      "ours": {"loss_itc": 1.0}, "torch loops": {"loss_itc": 1.0}, "largest_difference": 1e-6,
    },
    "step": {
      "implementations": {
        name: implementation(time) for name, time in zip(names, (2, 5), strict=True)
      },
      "input_wait": {"seconds": 2.0, "wait": 0.5}, "flops": 3e9, "peak_flops": 2e9,
      "product_flops": {"ours": 1e9},
    },
    "association": {"dim": 16, "implementations": {"ours": seconds(1), "torch loops": seconds(7)}},
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
  return measurements | {"targets": report.targets(measurements)}


def test_targets_on_an_accelerator():
  met = {row["target"]: (row["measured"], row["met"]) for row in results()["targets"]}
  assert met == {
    "full step against torch loops": ("2.50 x", True),
    "association + bank against torch loops": ("7.00 x", False),
    "ranking 9x9": ("3.00 x", True),
    "association + bank, share of the step": ("10.00 %", False),
    "MFU of the step": ("75.0 %", True),
  }


def test_targets_of_a_processor_and_of_ours_alone():
  measurements = results()
  measurements["machine"]["platform"] = "cpu"
  measurements["step"]["implementations"].pop("torch loops")
  names = [row["target"] for row in report.targets(measurements)]
  assert names == ["association + bank against torch loops", "ranking 9x9"]


def test_tables_hold_the_numbers():
  text = report.markdown(results())
  for piece in (
    "| ours | 2,000.0 (1,000.0 to 4,000.0) | 4.00 | 2 | 75.0 % | 2.00 GB | 3.0 | 1.00 |",
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
  for name in ("step", "agreement", "ranking", "association"):
    del measurements[name]
  measurements["targets"] = report.targets(measurements)
  titles = [table.title for table in report.make_tables(measurements)]
  assert titles == ["Input", "Targets"] and measurements["targets"] == []
