"""From measurements to tables, and which targets are met."""

from typing import Any

from experiments.speed.benchmark.text_table import Table, gigabytes, ratio, spread

PARTS = {
  "views": "two views",
  "tower/image": "image tower",
  "tower/text": "text tower",
  "relations": "association + bank",
  "optimiser": "optimiser",
}
# What must hold on a CPU, in times faster than PyTorch.
STEP_TARGET, ASSOCIATION_TARGET, RANKING_TARGET = 1.0, 8.0, 3.0
ASSOCIATION_SHARE = 0.01  # of a step, on an accelerator
MFU_TARGET = 0.5  # on an accelerator whose peak is known


def make_tables(results: dict[str, Any]) -> list[Table]:
  """All tables, in reading order."""
  makers = {
    "agreement": _agreement,
    "step": _step,
    "association": _association,
    "ranking": _ranking,
    "input": _input,
  }
  tables = [make(results) for name, make in makers.items() if name in results]
  if "step" in results:
    place = 1 + ("agreement" in results)
    tables.insert(place, _shares(results))
    if results["step"].get("device_time"):
      tables.insert(place + 1, _device_time(results))
  return [*tables, _targets(results)]


def _agreement(results):
  entry = dict(results["agreement"])
  difference = entry.pop("largest_difference")
  names = list(entry["ours"])
  rows = [[name, *(f"{values[name]:.6g}" for values in entry.values())] for name in names]
  note = (
    "One step each, float32, same weights, views and banks. Largest relative difference: "
    f"{difference:.1e}."
  )
  return Table("Same numbers", ("", *entry), rows, note)


def _step(results):
  step, batch = results["step"], results["settings"]["batch_size"]
  rows = []
  for name, entry in step["implementations"].items():
    seconds, pairs = entry["seconds"], batch / entry["seconds"]["median"]
    achieved = step["flops"] / seconds["median"]
    peak = step["peak_flops"]
    rows.append(
      [
        name,
        spread(seconds),
        f"{pairs:,.2f}",
        f"{achieved / 1e9:,.0f}",
        f"{100 * achieved / peak:.1f} %" if peak else "-",
        gigabytes(entry["peak_memory"]),
        f"{entry['compile']:.1f}" if "compile" in entry else "-",
        f"{ratio(seconds, step['implementations']['ours']['seconds']):.2f}",
      ]
    )
  note = (
    f"A step of {batch} pairs needs {step['flops'] / 1e9:,.0f} GFLOP (2 x multiply-adds; towers, "
    "search and losses). MFU is their share of the chip's dense bfloat16 peak, where that is known."
    " `times ours` above 1: slower than ours. Peak memory is that of the device, or on a CPU of the"
    " whole process, compilation included."
  )
  if "product_flops" in step:
    products = ", ".join(f"{n} {v / 1e9:,.0f}" for n, v in step["product_flops"].items())
    note += f" One 2,048 x 2,048 matrix product alone reaches, in GFLOP/s: {products}."
  columns = ("training step", "ms (min to max)", "pairs/s", "GFLOP/s", "MFU", "peak memory",
             "compile s", "times ours")  # fmt: skip
  return Table("Training step", columns, rows, note)


def _shares(results):
  step = results["step"]
  implementations = step["implementations"]
  rows = []
  for part, title in PARTS.items():
    cells = [title]
    for entry in implementations.values():
      seconds = entry["parts"][part]
      share = seconds["median"] / entry["seconds"]["median"]
      cells.append(f"{1e3 * seconds['median']:,.1f} ms, {100 * share:.1f} %")
    rows.append(cells)
  rest = ["rest (together minus parts)"]
  for entry in implementations.values():
    left = 1 - sum(p["median"] for p in entry["parts"].values()) / entry["seconds"]["median"]
    rest.append(f"{100 * left:+.1f} %")
  rows.append(rest)
  wait = step.get("input_wait")
  if wait:
    text = f"{1e3 * wait['wait']:,.1f} ms, {100 * wait['wait'] / wait['seconds']:.1f} %"
    rows.append(["input wait", text, *("-" for _ in range(len(implementations) - 1))])
  note = (
    "Parts are timed separately, each compiled and run alone, forward and backward; their sum is"
    " not the step. Input wait is measured in a loop over the real pipeline that decodes JPEGs."
  )
  return Table("Shares of the step", ("part", *implementations), rows, note)


def _device_time(results):
  seconds = results["step"]["device_time"]
  whole = sum(seconds.values())
  rows = [
    [kind, f"{1e3 * entry:,.2f}", f"{100 * entry / whole:.1f} %"] for kind, entry in seconds.items()
  ]
  note = "Kernels of our step as a profiler saw them on the first device, by their names."
  return Table("Where the device's time goes", ("kernels", "ms per step", "share"), rows, note)


def _association(results):
  entry, settings = results["association"], results["settings"]
  ours = entry["implementations"]["ours"]
  rows = [
    [name, spread(seconds), f"{ratio(seconds, ours):.2f}"]
    for name, seconds in entry["implementations"].items()
  ]
  note = (
    f"All four losses, search, gather and update of both banks, forward and backward to the "
    f"features: N = {settings['num_pairs']:,}, D = {entry['dim']}, B = "
    f"{settings['association_batch']}, float32."
  )
  return Table("Association + bank", ("", "ms (min to max)", "times ours"), rows, note)


def _ranking(results):
  rows = []
  for size, entry in results["ranking"].items():
    for name, implementation in entry["implementations"].items():
      if "skipped" in implementation:
        rows.append([size, name, implementation["skipped"], "-", "-"])
        continue
      rows.append(
        [
          size,
          name,
          spread(implementation["seconds"], scale=1, digits=2),
          gigabytes(implementation["memory"]),
          f"{ratio(implementation['seconds'], entry['implementations']['ours']['seconds']):.2f}",
        ]
      )
  note = (
    "R@1, R@5, R@10, mAP and mINP of all queries from 512-dimensional features, queries x gallery. "
    "Memory is what ranking adds to the process, whose features are already in memory."
  )
  return Table("Ranking", ("", "", "s (min to max)", "memory", "times ours"), rows, note)


def _input(results):
  rows = [
    [
      row["dataset"],
      str(row["workers"]),
      f"{row['pairs_per_second']:,.0f}",
      f"{row['cores']:.2f}",
      f"{row['pairs_per_core_second']:,.0f}",
    ]
    for row in results["input"]
  ]
  columns = ("dataset", "workers", "pairs/s", "cores in use", "pairs/s per core")
  note = "The pipeline alone. 0 workers: threads of one process. Per core: per processor second."
  return Table("Input", columns, rows, note)


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
  """Targets and measurements: [{"target", "needed", "measured", "met"}]."""
  entries = []

  def add(target, needed, measured, met):
    entries.append({"target": target, "needed": needed, "measured": measured, "met": bool(met)})

  accelerator = results["machine"]["platform"] != "cpu"
  step = results.get("step", {}).get("implementations", {})
  ours = step.get("ours")
  for name, implementation in step.items():
    if name != "ours":
      times = ratio(implementation["seconds"], ours["seconds"])
      add(f"full step against {name}", f"at least {STEP_TARGET:g} x", f"{times:.2f} x",
          times >= STEP_TARGET)  # fmt: skip
  if "association" in results:
    implementations = results["association"]["implementations"]
    if "torch loops" in implementations:
      times = ratio(implementations["torch loops"], implementations["ours"])
      add("association + bank against torch loops", f"at least {ASSOCIATION_TARGET:g} x",
          f"{times:.2f} x", times >= ASSOCIATION_TARGET)  # fmt: skip
  for size, ranking in results.get("ranking", {}).items():
    torch = ranking["implementations"].get("torch", {})
    if "seconds" in torch:
      times = ratio(torch["seconds"], ranking["implementations"]["ours"]["seconds"])
      add(f"ranking {size}", f"at least {RANKING_TARGET:g} x", f"{times:.2f} x",
          times >= RANKING_TARGET)  # fmt: skip
  if accelerator and ours:
    share = ours["parts"]["relations"]["median"] / ours["seconds"]["median"]
    add("association + bank, share of the step", f"under {100 * ASSOCIATION_SHARE:g} %",
        f"{100 * share:.2f} %", share < ASSOCIATION_SHARE)  # fmt: skip
    if results["step"]["peak_flops"]:
      used = results["step"]["flops"] / ours["seconds"]["median"] / results["step"]["peak_flops"]
      add("MFU of the step", f"at least {100 * MFU_TARGET:g} %", f"{100 * used:.1f} %",
          used >= MFU_TARGET)  # fmt: skip
  return entries


def _targets(results):
  rows = [
    [row["target"], row["needed"], row["measured"], "yes" if row["met"] else "NO"]
    for row in results["targets"]
  ]
  return Table("Targets", ("", "needed", "measured", "met"), rows)


def markdown(results: dict[str, Any]) -> str:
  """The whole report."""
  machine, settings = results["machine"], results["settings"]
  lines = ["# Benchmark", "", "```", results["command"], "```", ""]
  lines.append(
    f"{results['date']}; {machine['description']}; {machine['threads']} thread(s) each; "
    f"{', '.join(machine['versions'])}; {settings['model']} at {settings['image_size']}, "
    f"{settings['context_length']} tokens, encoders in {settings['dtype']}, remat "
    f"{settings['remat']}."
  )
  lines += [
    "",
    "Made-up data, random weights, all four losses on. Implementations run in processes of",
  ]
  lines += ["their own and are measured in turn; a turn on the step, its parts or the association"]
  lines += ["begins with a call that is not timed. Numbers are medians.", ""]
  for table in make_tables(results):
    lines += table.markdown()
  return "\n".join(lines)
