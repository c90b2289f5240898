"""The table of TPU slices: sound cases, work that is kept, and cells that say what was found."""

import json
import math
import types

import pytest

from dgia_jax import config as config_lib
from dgia_jax.dry_run import topology
from dgia_jax.models import dual_encoder
from experiments.speed import topologies

FACTS = {
  "topology": "v5e:2x2", "chips": 4, "mesh": [4, 1, 1], "model": "vit_b_16", "batch": 1024,
  "bank_rows": 68_108, "remat": False, "fits": False, "flops_counted": 62e12,
  "compile_seconds": 81.5,
  "memory_bytes": {
    "parameters": 2**29, "optimizer": 2**30, "bank": 2**26, "batch": 2**20,
    "activations and temporaries": 30 * 2**30, "total": 32 * 2**30, "has": 16 * 2**30,
  },
  "collectives": [
    {"bytes": 3 * 2**20, "times": 12, "of_bank": False},
    {"bytes": 5 * 2**20, "times": 1, "of_bank": True},
  ],
}  # fmt: skip


@pytest.mark.parametrize("case", topologies.CASES, ids=json.dumps)
def test_every_case_can_be_built(case):
  name, fields, num_pairs = json.loads(json.dumps(case))  # as its own process reads it
  config = topologies.configure(fields)
  config_lib.check(config)
  generation, shape = topology.parse(name)
  chips = math.prod(shape)
  assert generation in topology.HBM_BYTES and num_pairs > 0 and chips % config.mesh.fsdp == 0
  assert config.batch_size % chips == 0
  patch = dual_encoder.SIZES[config.model.name].patch_size
  assert all(side % patch == 0 for side in config.dataset.image_size)


def test_the_cases_span_what_is_asked():
  chips = {math.prod(topology.parse(name)[1]) for name, _, _ in topologies.CASES}
  generations = {topology.parse(name)[0] for name, _, _ in topologies.CASES}
  assert {1, 256} <= chips and generations == set(topology.HBM_BYTES)
  assert {16_384, 64} <= {fields["batch_size"] for _, fields, _ in topologies.CASES}
  assert 100_000_000 in {num_pairs for _, _, num_pairs in topologies.CASES}


def test_what_is_done_is_kept_and_a_crash_costs_one_case(monkeypatch, tmp_path, capsys):
  cases = [("v5e:1x1", {"batch_size": size}, 100) for size in (8, 16, 32)]
  compiled = []

  def run(command, **_):
    case = json.loads(command[-1])
    compiled.append(case[1]["batch_size"])
    crashes = case[1]["batch_size"] == 16
    return types.SimpleNamespace(
      returncode=-9 if crashes else 0, stderr="killed", stdout="noise\n" + json.dumps(FACTS)
    )

  monkeypatch.setattr(topologies.subprocess, "run", run)
  path = tmp_path / "out.json"
  assert list(topologies.measure(cases[:1], path).values()) == [FACTS]
  assert len(topologies.measure(cases, path)) == 2  # without the one that crashed
  assert compiled == [8, 16, 32] and "killed" in capsys.readouterr().err
  topologies.measure(cases, path)
  assert compiled == [8, 16, 32, 16]


def test_cells():
  head, _, row = topologies.table({"case": FACTS})[-3:]
  cells = dict(
    zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row)), strict=True)
  )
  assert cells["mesh"] == "4x1x1" and cells["bank rows"] == "68,108" and cells["remat"] == "no"
  assert cells["params"] == "0.50" and cells["total"] == "32.00" and cells["has"] == "16.00"
  assert cells["fits"] == "no, 16.00 GiB over" and cells["TFLOP"] == "62.00"
  assert cells["sent MiB"] == "41" and cells["for the bank"] == "5" and cells["largest MiB"] == "5"
  refused = topologies.table({"case": FACTS | {"collectives": []}})[-1]
  assert refused.split("|")[-5].strip() == "" and refused.split("|")[-2].strip() == "81.5"
