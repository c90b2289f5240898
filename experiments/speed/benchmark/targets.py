"""Which targets the measurements meet."""

from collections.abc import Mapping
from typing import Any

from experiments.speed.benchmark.contenders import COMPILED, LOOPS, OURS, OURS_ALL_TOKENS
from experiments.speed.benchmark.text_table import ratio

# In times faster than PyTorch.
STEP_TARGET_ON_CPU = 1.15
STEP_TARGET, COMPILED_STEP_TARGET = 2.5, 1.3  # on an accelerator
ASSOCIATION_TARGET, RANKING_TARGET = 8.0, 3.0
ASSOCIATION_SHARE = 0.01  # of a step, on an accelerator
MFU_TARGET = 0.5  # of the arithmetic that is done, on an accelerator whose peak is known
PAIRS_PER_SECOND = {"H200": 2600, "H100": 2300}  # by a part of the accelerator's name


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
  """Targets and measurements: [{"target", "needed", "measured", "met"}]; failures have none."""
  entries = []

  def add(target, needed, measured, met):
    entries.append({"target": target, "needed": needed, "measured": measured, "met": bool(met)})

  machine = results.get("machine", {"platform": "cpu", "description": ""})
  on_cpu = machine["platform"] == "cpu"
  step = measured(results.get("step", {}).get("implementations", {}))
  ours = step.get(OURS)
  for name, entry in step.items():
    if ours and name not in (OURS, OURS_ALL_TOKENS):
      least = COMPILED_STEP_TARGET if name == COMPILED else STEP_TARGET
      least = STEP_TARGET_ON_CPU if on_cpu else least
      times = ratio(entry["seconds"], ours["seconds"])
      add(f"full step against {name}", f"at least {least:g} x", f"{times:.2f} x", times >= least)
  association = measured(results.get("association", {}).get("implementations", {}))
  if OURS in association and LOOPS in association:
    times = ratio(association[LOOPS]["seconds"], association[OURS]["seconds"])
    add("association + bank against torch loops", f"at least {ASSOCIATION_TARGET:g} x",
        f"{times:.2f} x", times >= ASSOCIATION_TARGET)  # fmt: skip
  for size, ranking in results.get("ranking", {}).items():
    torch = ranking["implementations"].get("torch", {})
    if "seconds" in torch:
      times = ratio(torch["seconds"], ranking["implementations"]["ours"]["seconds"])
      add(f"ranking {size}", f"at least {RANKING_TARGET:g} x", f"{times:.2f} x",
          times >= RANKING_TARGET)  # fmt: skip
  if on_cpu or not ours:
    return entries
  relations = ours.get("parts", {}).get("relations", {})
  if "seconds" in relations:
    share = relations["seconds"]["median"] / ours["seconds"]["median"]
    add("association + bank, share of the step", f"under {100 * ASSOCIATION_SHARE:g} %",
        f"{100 * share:.2f} %", share < ASSOCIATION_SHARE)  # fmt: skip
  sizes = {results["settings"]["batch_size"]: ours} | {
    row["batch_size"]: row["implementations"][OURS]
    for row in results.get("batches", ())
    if OURS in measured(row["implementations"])
  }
  least = next((n for name, n in PAIRS_PER_SECOND.items() if name in machine["description"]), None)
  for batch_size, entry in sizes.items():
    if results["step"]["peak_flops"]:
      used = entry["flops"] / entry["seconds"]["median"] / results["step"]["peak_flops"]
      add(f"MFU of the step, batch {batch_size}", f"at least {100 * MFU_TARGET:g} %",
          f"{100 * used:.1f} %", used >= MFU_TARGET)  # fmt: skip
    if least:
      pairs = batch_size / entry["seconds"]["median"]
      add(f"pairs/s, batch {batch_size}", f"at least {least:,}", f"{pairs:,.0f}", pairs >= least)
  return entries


def measured(implementations: Mapping[str, Any]) -> dict[str, Any]:
  """Those that did not fail."""
  return {name: entry for name, entry in implementations.items() if "failed" not in entry}
