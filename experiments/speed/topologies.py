"""What fits on which TPU or GPU: the training step compiled for devices that are not attached.

  pip install "jax[tpu,cuda13]"
  python -m experiments.speed.topologies --out experiments/results/topologies

Compiles every case of `CASES` in a process of its own, minutes of CPU each and at the lowest
priority, stores finished cases in OUT.json, from which a second start resumes, and writes OUT.md.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dgia_jax import files

GIB, MIB = 2**30, 2**20
BASE = {"model.remat": True}
LARGE = {"model.name": "vit_l_14", "dataset.image_size": [378, 126]}

# (topology, config fields, pairs): from one chip to 256, from the benchmark to 10^8 pairs.
CASES = (
  ("v5e:1x1", {"batch_size": 64}, 68_108),
  ("v5e:2x2", {"batch_size": 64, "model.remat": False}, 68_108),
  ("v5e:2x2", {"batch_size": 256}, 68_108),
  ("v4:2x2x1", {"batch_size": 256}, 68_108),
  ("v6e:2x2", {"batch_size": 512}, 68_108),
  ("v5e:4x4", {"batch_size": 1024, "mesh.fsdp": 4}, 1_000_000),
  ("v5p:2x2x4", {"batch_size": 2048, "mesh.fsdp": 4}, 10_000_000),
  ("v6e:8x8", {"batch_size": 4096, "mesh.fsdp": 8}, 10_000_000),
  ("v5e:16x16", {"batch_size": 4096, "mesh.fsdp": 8}, 100_000_000),
  ("v5e:16x16", {"batch_size": 16384, "mesh.fsdp": 8}, 100_000_000),
  ("v6e:16x16", {"batch_size": 16384, "mesh.fsdp": 8}, 100_000_000),
  ("v4:4x4x8", {"batch_size": 8192, "mesh.fsdp": 8}, 100_000_000),
  ("v5e:4x4", {"batch_size": 64}, 100_000_000),
  ("v5e:2x2", {"batch_size": 1024, "model.remat": False}, 68_108),
  ("v6e:4x4", {"batch_size": 1024, "mesh.fsdp": 4, **LARGE}, 1_000_000),
  ("h100:1", {"batch_size": 64, "model.remat": False}, 68_108),
  ("h100:1", {"batch_size": 256, "model.remat": False}, 68_108),
  ("h100:1", {"batch_size": 512, "model.remat": False}, 68_108),
  ("h100:1", {"batch_size": 512, "model.remat": False, "gradient_accumulation": 4}, 68_108),
  ("h100:1", {"batch_size": 512}, 68_108),
  ("h200:1", {"batch_size": 1024, "model.remat": False}, 68_108),
  ("h200:8", {"batch_size": 512, "model.remat": False}, 68_108),
  ("h200:2x8", {"batch_size": 4096, "mesh.fsdp": 8}, 100_000_000),
  ("a100:8", {"batch_size": 512, "model.remat": False}, 68_108),
)


def configure(fields: dict[str, Any]) -> ConfigDict:
  """The config of a case: the released recipe and the case's fields."""
  from configs import cuhk_pedes

  config = cuhk_pedes.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(BASE | fields)
  return config


def measure_one(case: Sequence[Any]) -> None:
  """Compiles one case in this process; prints the facts as a line of JSON."""
  os.nice(19)
  import jax

  from dgia_jax.dry_run import compile_report

  jax.config.update("jax_platforms", "cpu")
  topology, fields, num_pairs = case
  facts = compile_report.measure(configure(fields), topology, num_pairs)
  print(json.dumps(facts))


def measure(cases: Sequence[Any], path: pathlib.Path) -> dict[str, Any]:
  """Compiles the missing cases, each in its own process; returns {case: facts}."""
  done = json.loads(path.read_text()) if path.exists() else {}
  for case in cases:
    key = json.dumps(case)
    if key in done:
      continue
    command = [sys.executable, "-m", "experiments.speed.topologies", "--one", key]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
      print(f"{key}: failed\n{result.stderr[-2000:]}", file=sys.stderr, flush=True)
      continue
    done[key] = json.loads(result.stdout.strip().splitlines()[-1])
    files.write_text(path, json.dumps(done, indent=1) + "\n")
    print(f"{key}: {done[key]['compile_seconds']} s, fits: {done[key]['fits']}", flush=True)
  return {json.dumps(case): done[json.dumps(case)] for case in cases if json.dumps(case) in done}


def table(facts: dict[str, Any]) -> list[str]:
  """The results as Markdown lines."""
  lines = [
    "# Steps compiled for accelerators that are not attached",
    "",
    "```",
    "python -m experiments.speed.topologies --out experiments/results/topologies",
    "```",
    "",
    "Images of 384 x 128 (`vit_l_14`: 378 x 126), 77 tokens, bfloat16, all four losses. Mesh: data",
    "x fsdp x tensor. GiB on one chip; TFLOP of one chip and step, by count (a multiply-add is",
    "two, recomputation not counted); MiB on a chip of all collectives of a step, of those that",
    "serve the bank, and of the largest single one. The compiler merges some collectives so that",
    "the line they come from is lost, winning rows of the bank among them. `compile s`: on CPU",
    "cores that did more.",
    "",
    "| slice | chips | model | mesh | batch | bank rows | remat | params | optimizer | bank"
    " | temporaries | total | has | fits | TFLOP | sent MiB | for the bank | largest MiB"
    " | compile s |",
    "|" + "---|" * 19,
  ]
  for one in facts.values():
    memory, parts = one["memory_bytes"], one.get("gradient_accumulation", 1)
    collectives = one["collectives"]
    total = sum(each["bytes"] * each["times"] for each in collectives)
    of_bank = sum(each["bytes"] * each["times"] for each in collectives if each["of_bank"])
    largest = max((each["bytes"] for each in collectives), default=0)
    mib = lambda size, known=bool(collectives): f"{size / MIB:,.0f}" if known else ""
    gib = lambda name, memory=memory: f"{memory[name] / GIB:.2f}"
    cells = [
      one["topology"], one["chips"], one["model"], "x".join(map(str, one["mesh"])),
      f"{one['batch']:,}" + (f" in {parts} parts" if parts > 1 else ""),
      f"{one['bank_rows']:,}", "yes" if one["remat"] else "no",
      gib("parameters"), gib("optimizer"), gib("bank"), gib("activations and temporaries"),
      gib("total"), gib("has"),
      "yes" if one["fits"] else f"no, {(memory['total'] - memory['has']) / GIB:.2f} GiB over",
      f"{one['flops_counted'] / 1e12:.2f}", mib(total), mib(of_bank), mib(largest),
      one["compile_seconds"],
    ]  # fmt: skip
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return lines


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--out", type=pathlib.Path, help="write OUT.json and OUT.md")
  parser.add_argument("--one", help="compile this case here")
  options = parser.parse_args()
  if options.one:
    measure_one(json.loads(options.one))
    return
  if not options.out:
    parser.error("--out is missing")
  lines = table(measure(CASES, options.out.with_suffix(".json")))
  files.write_text(options.out.with_suffix(".md"), "\n".join(lines) + "\n")
  print("\n".join(lines))


if __name__ == "__main__":
  main()
