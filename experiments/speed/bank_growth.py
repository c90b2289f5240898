"""Time and memory of the memory bank's search and update from 10^4 to 10^7 rows.

  python -m experiments.speed.bank_growth --out experiments/results/bank_growth

Every point runs in a process of its own, on 1 and on 8 devices (a CPU shows as many as asked for).
Also holds the search against brute force. Writes PATH.json, PATH.md, PATH.png and PATH.pdf.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from dgia_jax import files
from experiments import figure_files

QUERIES = 64
COUNT = 4  # the own row and three neighbours
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
EXACT_DIM = 64  # a power of 4: vectors of +1 and -1 then have exact norms and products
_CHUNK = 2**24  # numbers written into the bank at once
_HEADROOM = 1.5e9  # bytes left for everything but the bank


def bank_bytes(num_rows: int, dim: int) -> int:
  """Bytes of both modalities' rows, norms and groups."""
  return num_rows * (2 * (dim + 1) + 1) * 4


def make_bank(num_rows: int, dim: int, mesh: Any) -> Any:
  """A bank with every row written; rows are cheap to make and mostly different."""
  import jax
  import jax.numpy as jnp

  from dgia_jax import sharding
  from dgia_jax.method import memory_bank

  chunk = min(_CHUNK // dim, num_rows)
  layout = sharding.bank_rows(mesh)
  create = lambda: memory_bank.create(memory_bank.padded_rows(num_rows), dim)
  layouts = jax.tree.map(lambda _: layout, jax.eval_shape(create))
  bank = jax.jit(create, out_shardings=layouts)()

  def write(bank, base_BxD, start):
    rows_BxD = jnp.roll(base_BxD, start // chunk, axis=1)
    index = start + jnp.arange(chunk)
    index = jnp.where(index < num_rows, index, -1)
    return memory_bank.update(bank, index, index, rows_BxD, -rows_BxD, jnp.ones(chunk), mesh=mesh)

  write = jax.jit(write, donate_argnums=0, out_shardings=layouts)
  base_BxD = jax.random.normal(jax.random.key(0), (chunk, dim))
  for start in range(0, num_rows, chunk):
    # One at a time: chunks under way at once would need several times the bank's memory.
    bank = jax.block_until_ready(write(bank, base_BxD, start))
  return bank


def measure(num_rows: int, dim: int, repeats: int) -> dict[str, Any]:
  """Times search and update on all devices of this process: one row of the table."""
  import jax

  from dgia_jax import sharding
  from dgia_jax.method import bank_search, memory_bank
  from experiments.speed.benchmark import timing

  mesh = sharding.create_mesh(data=-1)
  bank = make_bank(num_rows, dim, mesh)
  queries = jax.random.normal(jax.random.key(1), (2, QUERIES, dim))
  queries = jax.device_put((queries[0], queries[1]), sharding.replicated(mesh))
  index = np.random.default_rng(0).choice(num_rows, QUERIES, replace=False).astype(np.int32)
  weight = np.full(QUERIES, 0.9, np.float32)
  arguments = jax.device_put((index, index, *queries, weight), sharding.replicated(mesh))
  layouts = jax.tree.map(lambda leaf: leaf.sharding, bank)
  search = jax.jit(lambda bank, queries: bank_search.search(bank, queries, COUNT, mesh=mesh))
  search = search.lower(bank, queries).compile()
  update = jax.jit(
    lambda bank, *new: memory_bank.update(bank, *new, mesh=mesh),
    donate_argnums=0,
    out_shardings=layouts,
  )
  update = update.lower(bank, *arguments).compile()
  temporaries = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
  state = [bank]
  del bank

  def run_update():
    state[0] = jax.block_until_ready(update(state[0], *arguments))

  run_search = lambda: jax.block_until_ready(search(state[0], queries))
  seconds = {"search": [], "update": []}
  for turn in range(repeats + 1):
    for name, function in (("search", run_search), ("update", run_update)):
      spent = timing.timed(function)
      if turn:  # the first is a warm-up
        seconds[name].append(spent)
  return {
    "rows": num_rows,
    "dim": dim,
    "devices": mesh.size,
    "bank_bytes": bank_bytes(num_rows, dim),
    "search": timing.summary(seconds["search"]),
    "update": timing.summary(seconds["update"]),
    "search_temporaries": temporaries(search),
    "update_temporaries": temporaries(update),
    "aliased_bytes": update.memory_analysis().alias_size_in_bytes,
    "peak_memory": timing.peak_memory(),
  }


def brute_force(
  queries_QxD: np.ndarray, rows_NxD: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The best rows of every query by one whole product and a stable sort: scores and rows."""
  scores_QxN = queries_QxD @ rows_NxD.T
  order_QxC = np.argsort(-scores_QxN, axis=1, kind="stable")[:, :count]
  return np.take_along_axis(scores_QxN, order_QxC, axis=1), order_QxC


def check_exact(num_rows: int, mesh: Any = None) -> dict[str, Any]:
  """Holds the search against brute force.

  Twice: on vectors of +1 and -1, whose cosines are exact in float32 and tie all the time, so rows
  must be equal one by one; and on normal vectors, whose products may round differently.

  Args:
    num_rows: of the bank.
    mesh: defaults to one over all devices.

  Returns:
    {"rows", "devices", "ties": how many of the best were tied with the next row; "equal": whether
    all rows and scores equal brute force; "normal_equal": share of equal rows of normal vectors,
    "normal_difference": largest difference of their scores}.
  """
  import jax

  from dgia_jax import sharding
  from dgia_jax.method import bank_search, memory_bank

  mesh = mesh or sharding.create_mesh(data=-1)
  random = np.random.default_rng(0)
  search = jax.jit(
    lambda queries, rows, norms: bank_search.nearest((queries,), ((rows, norms),), COUNT, mesh=mesh)
  )

  def search_both_ways(queries_QxD, rows_NxD, norms_N):
    padded = memory_bank.padded_rows(num_rows) - num_rows
    rows = jax.device_put(np.pad(rows_NxD, ((0, padded), (0, 0))), sharding.bank_rows(mesh))
    norms = jax.device_put(np.pad(norms_N, (0, padded)), sharding.bank_rows(mesh))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = jax.device_get(search(queries_QxD, rows, norms))
    return nearest, brute_force(unit(queries_QxD), unit(rows_NxD), COUNT + 1)

  signs = lambda count: random.choice(np.array([-1, 1], np.float32), (count, EXACT_DIM))
  exact_norm = np.full(num_rows, EXACT_DIM**-0.5, np.float32)
  (scores, rows), (best, order) = search_both_ways(signs(QUERIES), signs(num_rows), exact_norm)
  normal = lambda count: random.standard_normal((count, EXACT_DIM), np.float32)
  drawn = normal(num_rows)
  norms = (1 / np.linalg.norm(drawn, axis=1)).astype(np.float32)
  (near_scores, near), (near_best, near_order) = search_both_ways(normal(QUERIES), drawn, norms)
  return {
    "rows": num_rows,
    "devices": mesh.size,
    "ties": int(np.sum(best[:, :COUNT] == best[:, 1:])),
    "equal": bool(np.array_equal(rows, order[:, :COUNT]) and np.array_equal(scores, best[:, :-1])),
    "normal_equal": float(np.mean(near == near_order[:, :COUNT])),
    "normal_difference": float(np.max(np.abs(near_scores - near_best[:, :COUNT]))),
  }


def _child(devices, *arguments):
  """Measures one point in a process with the given number of devices."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", "experiments.speed.bank_growth", *map(str, arguments)]
  done = subprocess.run(
    command, env={**os.environ, "XLA_FLAGS": flags.strip()}, stdout=subprocess.PIPE, text=True
  )
  if done.returncode:
    raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}")
  return json.loads(done.stdout.splitlines()[-1])


def collect(
  sizes: Sequence[int],
  dims: Sequence[int],
  device_counts: Sequence[int],
  repeats: int,
  check_rows: int,
) -> dict[str, Any]:
  """All points that fit into memory, and the checks: {"points", "left_out", "checks"}."""
  points, left_out = [], []
  checks = [_child(count, "--check", check_rows) for count in device_counts]
  for check in checks:
    print(check, flush=True)
  for dim in dims:
    for size in sizes:
      free = psutil.virtual_memory().available
      if bank_bytes(size, dim) + _HEADROOM > free:
        left_out.append({"rows": size, "dim": dim, "free_bytes": free})
        print(f"D={dim} N={size:,}: {bank_bytes(size, dim) / 1e9:.1f} GB do not fit", flush=True)
        continue
      for count in device_counts:
        points.append(_child(count, "--point", size, dim, "--repeats", repeats))
        print(json.dumps(points[-1]), flush=True)
  return {"points": points, "left_out": left_out, "checks": checks}


def exponents(points: list[dict[str, Any]]) -> dict[tuple[int, int], float]:
  """How search time grows, seconds ~ N^e, fitted from 10^5 rows on: {(dim, devices): e}."""
  slopes = {}
  for dim, devices in sorted({(point["dim"], point["devices"]) for point in points}):
    chosen = [
      (point["rows"], point["search"]["median"])
      for point in points
      if (point["dim"], point["devices"]) == (dim, devices) and point["rows"] >= 1e5
    ]
    if len(chosen) > 1:
      rows, seconds = np.log(np.array(chosen)).T
      slopes[dim, devices] = float(np.polyfit(rows, seconds, 1)[0])
  return slopes


def markdown(results: dict[str, Any]) -> list[str]:
  """The report as lines of Markdown."""
  lines = [
    "# Growth of the memory bank", "", "```", results["command"], "```", "",
    f"{results['date']}; {results['machine']}. {QUERIES} queries, the {COUNT} best rows, exact; "
    "median (min to max) in ms. Both modalities are stored, image features are searched. "
    "Temporaries are the memory per device besides bank and results; peak "
    "is of the whole process, all devices, while the bank is also filled.",
    "",
    "| D | devices | N | bank GB | search ms | ns per row | update ms | search temporaries MB |"
    " update temporaries MB | peak GB |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]  # fmt: skip
  for point in results["points"]:
    spread = lambda seconds: "{:,.2f} ({:,.2f} to {:,.2f})".format(
      *(1e3 * seconds[key] for key in ("median", "min", "max"))
    )
    cells = [
      str(point["dim"]), str(point["devices"]), f"{point['rows']:,}",
      f"{point['bank_bytes'] / 1e9:.3f}", spread(point["search"]),
      f"{1e9 * point['search']['median'] / point['rows']:.1f}", spread(point["update"]),
      f"{point['search_temporaries'] / 1e6:.2f}", f"{point['update_temporaries'] / 1e6:.2f}",
      f"{point['peak_memory'] / 1e9:.2f}",
    ]  # fmt: skip
    lines.append(f"| {' | '.join(cells)} |")
  lines += ["", "Search time grows as N to the power of (fitted from 100,000 rows on):"]
  lines += [
    f"- D = {dim}, {devices} device(s): {power:.2f}"
    for (dim, devices), power in exponents(results["points"]).items()
  ]
  for left in results["left_out"]:
    size = bank_bytes(left["rows"], left["dim"])
    lines.append(
      f"- Left out: D = {left['dim']}, N = {left['rows']:,}: {size / 1e9:.1f} GB, "
      f"{left['free_bytes'] / 1e9:.1f} GB were free."
    )
  lines += ["", "Against brute force (one product, one stable sort, NumPy):"]
  lines += [
    f"- {check['devices']} device(s), {check['rows']:,} rows of +1 and -1: all rows and scores "
    f"equal: {'yes' if check['equal'] else 'NO'} ({check['ties']} of {QUERIES * COUNT} tied with "
    f"the next one). Normal vectors: {100 * check['normal_equal']:.2f} % of rows equal, scores "
    f"differ by at most {check['normal_difference']:.1e}."
    for check in results["checks"]
  ]
  return lines


def draw(points: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Writes a PNG, and a PDF beside it: seconds and temporaries over rows, log-log."""
  import matplotlib

  matplotlib.use("Agg")  # writes a file, needs no display
  import matplotlib.pyplot as plt

  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
  for color, (dim, devices) in enumerate(sorted({(p["dim"], p["devices"]) for p in points})):
    chosen = [p for p in points if (p["dim"], p["devices"]) == (dim, devices)]
    rows, style = [p["rows"] for p in chosen], dict(color=f"C{color}", marker="o", markersize=3)
    name = f"D = {dim}, {devices} device{'s' if devices > 1 else ''}"
    left.loglog(rows, [p["search"]["median"] for p in chosen], **style, label=f"search, {name}")
    left.loglog(rows, [p["update"]["median"] for p in chosen], **style, ls=":")
    right.loglog(rows, [p["search_temporaries"] / 1e6 for p in chosen], **style, label=name)
    right.loglog(rows, [p["bank_bytes"] / devices / 1e6 for p in chosen], **style, ls="--")
  top = max(points, key=lambda p: (p["dim"], p["rows"]))
  rows = np.array([min(p["rows"] for p in points), max(p["rows"] for p in points)])
  left.loglog(
    rows, 1.5 * top["search"]["median"] * rows / top["rows"], color="black", lw=0.8, label="linear"
  )
  left.set(title="time (dotted: update)", xlabel="rows of the bank", ylabel="seconds")
  right.set(
    title="temporaries of the search on a device (dashed: bank)",
    xlabel="rows of the bank",
    ylabel="MB",
  )
  for axis in (left, right):
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
  figure_files.save(figure, path)
  plt.close(figure)


def main() -> None:
  """Command line."""
  numbers = lambda text: [int(float(part)) for part in text.split(",")]
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument(
    "--out", type=pathlib.Path, help="write PATH.json, PATH.md, PATH.png and PATH.pdf"
  )
  parser.add_argument("--sizes", type=numbers, default=SIZES, help="rows, comma-separated")
  parser.add_argument("--dims", type=numbers, default=(512, 64), help="feature widths")
  parser.add_argument("--devices", type=numbers, default=(1, 8), help="numbers of CPU devices")
  parser.add_argument("--repeats", type=int, default=5, help="measurements of each point")
  parser.add_argument("--check_rows", type=int, default=1_000_000, help="for the exactness check")
  parser.add_argument("--point", type=int, nargs=2, metavar=("ROWS", "DIM"), help="measure one")
  parser.add_argument("--check", type=int, metavar="ROWS", help="compare with brute force only")
  options = parser.parse_args()
  if options.point:
    print(json.dumps(measure(*options.point, options.repeats)))
    return
  if options.check:
    print(json.dumps(check_exact(options.check)))
    return
  results = {
    "command": " ".join(["python -m experiments.speed.bank_growth", *sys.argv[1:]]),
    "date": datetime.date.today().isoformat(),
    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    **collect(options.sizes, options.dims, options.devices, options.repeats, options.check_rows),
  }
  lines = markdown(results)
  print("\n".join(lines))
  if options.out:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(options.out.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    files.write_text(options.out.with_suffix(".md"), "\n".join(lines) + "\n")
    draw(results["points"], options.out.with_suffix(".png"))


if __name__ == "__main__":
  main()
