"""From measurements to tables."""

import textwrap
from typing import Any

from experiments.speed.benchmark import device_time
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.text_table import Table, gigabytes, ratio, spread

PARTS = {
  "views": "two views",
  "tower/image": "image tower",
  "tower/text": "text tower",
  "relations": "association + bank",
  "optimiser": "optimiser",
}
_UNKNOWN = {"description": "not known yet", "threads": 0, "versions": []}
_LARGEST_KERNELS = 25  # of the table


def make_tables(results: dict[str, Any]) -> list[Table]:
  """All tables, in reading order."""
  makers = {
    "agreement": (_agreement,),
    "step": (_step, _shares, _device_time, _largest_kernels),
    "batches": (_batches,),
    "association": (_association,),
    "ranking": (_ranking,),
    "input": (_input,),
  }
  tables = [make(results) for name, some in makers.items() if name in results for make in some]
  return [table for table in (*tables, _targets(results)) if table.rows]


def _agreement(results):
  entry = dict(results["agreement"])
  if "failed" in entry:
    return Table("Same numbers", ("",), [[entry["failed"]]])
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
  ours = step["implementations"].get("ours", {})
  rows = []
  for name, entry in step["implementations"].items():
    if "failed" in entry:
      rows.append([name, entry["failed"], *("-" for _ in range(7))])
      continue
    seconds = entry["seconds"]
    rows.append(
      [
        name,
        spread(seconds),
        f"{batch / seconds['median']:,.2f}",
        f"{100 * entry['flops'] / step['flops']:.1f} %",
        f"{entry['flops'] / seconds['median'] / 1e9:,.0f}",
        _share_of_peak(entry, step),
        gigabytes(entry["peak_memory"]),
        f"{entry['compile']:.1f}" if "compile" in entry else "-",
        _times(entry, ours),
      ]
    )
  note = (
    f"A step of {batch} pairs needs {step['flops'] / 1e9:,.0f} GFLOP (2 x multiply-adds; towers, "
    "search and losses) where every token is computed. `arithmetic`: the share of it that is done;"
    " GFLOP/s and MFU count only that. MFU is its share of the chip's dense bfloat16 peak, where"
    " that is known. `times ours` above 1: slower than ours. Peak memory is that of the device"
    " (ours: as the compiler plans it), or on a CPU of the process so far, compilation included."
  )
  if "text_tokens" in ours:
    note += f" Ours computes {ours['text_tokens']:.1f} tokens per caption."
  if "product_flops" in step:
    products = ", ".join(f"{n} {v / 1e9:,.0f}" for n, v in step["product_flops"].items())
    note += f" One 2,048 x 2,048 matrix product alone reaches, in GFLOP/s: {products}."
  for what, why in step.get("failed", {}).items():
    note += f" Not measured: {what.replace('_', ' ')} ({why})."
  columns = ("training step", "ms (min to max)", "pairs/s", "arithmetic", "GFLOP/s", "MFU",
             "peak memory", "compile s", "times ours")  # fmt: skip
  return Table("Training step", columns, rows, note)


def _share_of_peak(entry, step):
  achieved = entry["flops"] / entry["seconds"]["median"]
  return f"{100 * achieved / step['peak_flops']:.1f} %" if step["peak_flops"] else "-"


def _times(entry, ours):
  return f"{ratio(entry['seconds'], ours['seconds']):.2f}" if "seconds" in ours else "-"


def _batches(results):
  rows = []
  for batch in results["batches"]:
    implementations = batch["implementations"]
    ours = implementations.get("ours", {})
    for name, entry in implementations.items():
      if "failed" in entry:
        rows.append([str(batch["batch_size"]), name, entry["failed"], "-", "-", "-", "-"])
        continue
      rows.append(
        [
          str(batch["batch_size"]),
          name,
          spread(entry["seconds"]),
          f"{batch['batch_size'] / entry['seconds']['median']:,.2f}",
          _share_of_peak(entry, results["step"]),
          gigabytes(entry["peak_memory"]),
          _times(entry, ours),
        ]
      )
  note = "MFU and peak memory as above."
  columns = ("batch", "", "ms (min to max)", "pairs/s", "MFU", "peak memory", "times ours")
  return Table("Larger batches", columns, rows, note)


def _shares(results):
  step = results["step"]
  implementations = {
    name: entry
    for name, entry in step["implementations"].items()
    if "parts" in entry and "seconds" in entry
  }
  rows = []
  for part, title in PARTS.items() if implementations else ():
    cells = [title]
    for entry in implementations.values():
      outcome = entry["parts"][part]
      if "failed" in outcome:
        cells.append(outcome["failed"])
        continue
      share = outcome["seconds"]["median"] / entry["seconds"]["median"]
      cells.append(f"{1e3 * outcome['seconds']['median']:,.1f} ms, {100 * share:.1f} %")
    rows.append(cells)
  rest = ["rest (together minus parts)"]
  for entry in implementations.values():
    parts = entry["parts"].values()
    if any("failed" in outcome for outcome in parts):
      rest.append("-")
      continue
    together = sum(outcome["seconds"]["median"] for outcome in parts)
    rest.append(f"{100 * (1 - together / entry['seconds']['median']):+.1f} %")
  if implementations:
    rows.append(rest)
  wait = step.get("input_wait")
  if wait:
    text = f"{1e3 * wait['wait']:,.1f} ms, {100 * wait['wait'] / wait['seconds']:.1f} %"
    rows.append(["input wait", text, *("-" for _ in range(len(implementations) - 1))])
  note = (
    "Parts are timed separately, each compiled and run alone, forward and backward; their sum is"
    " not the step. Input wait is measured in a loop over the real pipeline that decodes JPEGs."
  )
  return Table("Shares of the step", ("part", *(implementations or ["ours"])), rows, note)


def _device_time(results):
  seconds = results["step"].get("profile", {}).get("device_time", {})
  whole = sum(seconds.values())
  rows = [
    [kind, f"{1e3 * entry:,.2f}", f"{100 * entry / whole:.1f} %"] for kind, entry in seconds.items()
  ]
  note = "Kernels of our step as a profiler saw them on the first device, by their names."
  return Table("Where the device's time goes", ("kernels", "ms per step", "share"), rows, note)


def _largest_kernels(results):
  kernels = results["step"].get("profile", {}).get("kernels", [])
  between = [row for row in kernels if row["kind"] == device_time.BETWEEN]
  rows = [
    [row["kernel"], f"{row['count']:,.1f}", f"{row['ms']:,.3f}"]
    for row in between[:_LARGEST_KERNELS]
  ]
  columns = ("kernel", "per step", "ms per step")
  return Table(f"The largest kernels {device_time.BETWEEN}", columns, rows)


def _association(results):
  entry, settings = results["association"], results["settings"]
  ours = entry["implementations"].get("ours", {})
  rows = [
    [name, outcome["failed"], "-"]
    if "failed" in outcome
    else [name, spread(outcome["seconds"]), _times(outcome, ours)]
    for name, outcome in entry["implementations"].items()
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


def _targets(results):
  rows = [
    [row["target"], row["needed"], row["measured"], "yes" if row["met"] else "NO"]
    for row in results["targets"]
  ]
  return Table("Targets", ("", "needed", "measured", "met"), rows)


def markdown(results: dict[str, Any]) -> str:
  """The whole report."""
  machine, settings = results.get("machine", _UNKNOWN), results["settings"]
  lines = ["# Benchmark", "", "```", results["command"], "```", ""]
  lines.append(
    f"{results['date']}; {machine['description']}; {machine['threads']} thread(s) each; "
    f"{', '.join(machine['versions'])}; {settings['model']} at {settings['image_size']}, "
    f"{settings['context_length']} tokens, encoders in {settings['dtype']}, remat "
    f"{settings['remat']}."
  )
  lines += ["", *textwrap.wrap(_EXPLANATION + _captions(settings), 100), ""]
  if results.get("skipped"):
    lines += [f"Skipped, because the time of --seconds was over: {', '.join(results['skipped'])}."]
    lines += [""]
  for table in make_tables(results):
    lines += table.markdown()
  return "\n".join(lines)


_EXPLANATION = (
  "Made-up data, random weights, all four losses on. Implementations run in processes of their own"
  " and are measured in turn; a turn on the step, its parts or the association begins with a call"
  " that is not timed. Numbers are medians. `ours`: as training runs it, the last block of each"
  " tower for the one token that is read, captions encoded with little padding. `ours all tokens`:"
  " the last block of all tokens, captions at full length. `torch`: transformers' CLIPModel with"
  " PyTorch's fused attention, autocast, TensorFloat-32 on a GPU, the fused optimiser and views of"
  " whole batches, captions at full length; the association in loops over anchors, or vectorised."
  " `torch compiled`: vectorised, with both towers in `torch.compile`."
)


def _captions(settings):
  return (
    f" Captions have {settings['caption_tokens']:.1f} tokens on average, start and end included"
    f" (log-normal, mean {workload_lib.MEAN_TOKENS}, standard deviation"
    f" {workload_lib.STD_TOKENS}, cut to the context length), the same for all implementations."
  )
