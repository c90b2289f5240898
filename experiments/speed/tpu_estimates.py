"""What the TPU compiler expects of a training step on one chip: cycles, and padding of products.

  pip install "jax[tpu]"
  python -m experiments.speed.tpu_estimates --chips v5e:1x1,v5p:1x1x1,v6e:1x1 --out PATH

Compiles `vit_b_16` at 384 x 128 in bfloat16, without a TPU. A program takes minutes of all cores.
Finished ones are stored in PATH.json, from which a second start resumes. Writes PATH.md.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from dgia_jax import cli, files
from dgia_jax.dry_run import compile_report, flops, topology
from dgia_jax.dry_run.hlo_estimates import COPIES, OTHERS, PRODUCTS
from experiments.speed import topologies

NUM_PAIRS = 68_108
_MATRIX_UNITS = {"v4": 8, "v5e": 4, "v5p": 8, "v6e": 4}


def flops_per_cycle(chip: str) -> int:
  """Operations that all matrix units of a chip such as "v5e:1x1" do in a cycle."""
  generation, _ = topology.parse(chip)
  return 2 * topology.MATRIX_UNIT_SIDE[generation] ** 2 * _MATRIX_UNITS[generation]


def clock(chip: str, device_kind: str) -> float:
  """Cycles per second of a chip such as "v5e:1x1"."""
  return flops.peak_flops(device_kind) / flops_per_cycle(chip)


def table(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The results of `compile_report.measure` by chip, as Markdown lines."""
  lines = [
    "# A step of one TPU chip, as the compiler expects it",
    "",
    "```",
    f"python -m experiments.speed.tpu_estimates --chips {','.join(facts)} --out PATH",
    "```",
    "",
    "None of this was run. Cycles are the compiler's estimates, summed over all instructions;",
    "it gives none for copies in the background and what it cannot judge. Padding: share of the",
    "arithmetic of matrix products that fills up tiles of the matrix unit. Of the peak: arithmetic",
    "without padding, in the time of all cycles.",
    "",
    "| chip | batch | million cycles | products | copies | others | ms | of the peak"
    " | TFLOP of products | padding | memory GiB | compile s |",
    "|" + "---|" * 12,
  ]
  for chip, one in facts.items():
    million = {kind: count / 1e6 for kind, count in one["estimated_cycles"].items()}
    seconds = 1e6 * sum(million.values()) / clock(chip, one["device"])
    peak = flops.peak_flops(one["device"])
    cells = [
      chip,
      one["batch"],
      f"{sum(million.values()):.0f}",
      *(f"{million[kind]:.0f}" for kind in (PRODUCTS, COPIES, OTHERS)),
      f"{1e3 * seconds:.0f}",
      f"{one['product_flops'] / seconds / peak:.0%}",
      f"{one['product_flops'] / 1e12:.1f}",
      f"{1 - one['product_flops'] / one['padded_product_flops']:.0%}",
      f"{one['memory_bytes']['total'] / topology.GIB:.1f}",
      one["compile_seconds"],
    ]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return lines


def main() -> int:
  """Command line; returns the exit code."""
  return cli.run(_run)


def _run() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--chips", default="v5e:1x1,v5p:1x1x1,v6e:1x1", help="topologies of one chip")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--out", type=pathlib.Path, required=True, help="write PATH.json, PATH.md")
  options = parser.parse_args()
  import jax

  jax.config.update("jax_platforms", "cpu")
  path = options.out.with_suffix(".json")
  facts = json.loads(path.read_text()) if path.exists() else {}
  config = topologies.configure({"batch_size": options.batch_size, "model.remat": False})
  for chip in options.chips.split(","):
    if chip not in facts:
      facts[chip] = compile_report.measure(config, chip, NUM_PAIRS)
      files.write_text(path, json.dumps(facts, indent=1) + "\n")
  lines = table(facts)
  files.write_text(options.out.with_suffix(".md"), "\n".join(lines) + "\n")
  print("\n".join(lines))


if __name__ == "__main__":
  sys.exit(main())
