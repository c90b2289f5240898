"""The benchmark from flags to files: measures the implementations in order and stores results."""

import datetime
import functools
import importlib.util
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

from dgia_jax import files
from dgia_jax.dry_run import flops
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder
from experiments.speed.benchmark import input_speed, ranking, report, text_table, timing
from experiments.speed.benchmark import targets as targets_lib
from experiments.speed.benchmark import workers as workers_lib
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.contenders import (
  COMPILED,
  NAMES,
  OURS,
  OURS_ALL_TOKENS,
  PACKAGE,
  VECTORISED,
  Contenders,
  one_line,
  task,
)

_FED_STEPS, _FED_STEPS_ON_CPU = 100, 3  # steps on real input
_PROFILED_STEPS = 3
_LONGEST_RANKING = 10  # seconds; rankings that take longer are repeated twice only
# Measured first where the time is limited.
_FIRST_STEPS = (OURS, COMPILED)
_FIRST_BATCHES = (OURS, COMPILED, VECTORISED)


def main(options: Any) -> None:
  """Runs the parts that the flags choose, prints and writes the results.

  Args:
    options: the parsed flags of `__main__`.

  Raises:
    UserError: for whatever the user can mend.
    RuntimeError: the implementations do not compute the same; all results are written before.
  """
  workload = workload_lib.Workload(
    options.config.to_dict(), options.num_pairs, options.association_batch
  )
  workload_lib.check(workload)
  sizes = [_batch_size(text, options.num_pairs) for text in options.batch_sizes]
  worker_counts = [_worker_count(text) for text in options.workers]
  ranking_sizes = _ranking_sizes(options.ranking_sizes)
  with_torch = _with_torch(options.implementations)
  # Two frameworks share one GPU here: neither may take all of its memory in advance.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  console = text_table.console()
  results = {
    "command": f"python -m {PACKAGE} {shlex.join(sys.argv[1:])}",
    "date": datetime.date.today().isoformat(),
    "settings": _settings(workload),
    "elapsed": {},
  }
  start = time.monotonic()

  def keep(part="", **outcome):
    """Adds an outcome and writes all results: later parts may fail."""
    results.update(outcome)
    if part:
      results["elapsed"][part] = time.monotonic() - start
    results["targets"] = targets_lib.targets(results)
    if options.out:
      out = pathlib.Path(options.out)
      out.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(out.with_suffix(".json"), results)
      files.write_text(out.with_suffix(".md"), report.markdown(results))

  over = lambda: bool(options.seconds) and time.monotonic() - start > options.seconds
  if {"step", "shares", "association"} & set(options.part):
    with Contenders(
      workload,
      cores=options.threads,
      repeats=options.repeats,
      calls=options.calls,
      seconds=options.seconds,
      show=console.print,
    ) as contenders:
      described = contenders.describe(with_torch)
      names = _names(options.implementations, with_torch, contenders.on_cpu)
      keep("start", machine=_machine(described, described[0]["platform"], options.threads))
      agree = functools.partial(_agreement, workload, names, options, console)
      if contenders.on_cpu:
        keep("agreement", **agree())
      if "step" in options.part:
        for outcome in _steps(workload, contenders, names, described[0], console):
          keep("step", step=outcome)
        for batches in _batches(workload, contenders, names, sizes, results["step"]):
          keep("batches", batches=batches)
      if not contenders.on_cpu:  # where seconds are few: after what is worth most
        keep("agreement", **({} if over() else agree()))
      if "step" in options.part and "shares" in options.part:
        keep("shares", step=_with_shares(results["step"], contenders, names))
      if "association" in options.part:
        some = [name for name in names if name not in (OURS_ALL_TOKENS, COMPILED)]
        outcomes = contenders.measure("association", some)
        dim = dual_encoder.SIZES[workload.config.model.name].feature_width
        keep("association", association={"implementations": outcomes, "dim": dim})
  else:
    keep(machine=_machine([], "cpu", options.threads))
  if "ranking" in options.part:
    for size in ranking_sizes:
      if over():
        break
      outcome = {size: _ranking(size, with_torch, options, console)}
      keep("ranking", ranking=results.get("ranking", {}) | outcome)
  if "input" in options.part and not over():
    console.print("input ...")
    keep("input", input=input_speed.measure(worker_counts, options.input_seconds))
  skipped = [p for p in ("ranking", "input") if p in options.part and p not in results]
  keep(skipped=skipped)
  for table in report.make_tables(results):
    table.show(console)
  if options.out:
    out = pathlib.Path(options.out)
    console.print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.md')}")
  if "failed" in results.get("agreement", {}):
    raise RuntimeError(results["agreement"]["failed"])


def _with_torch(asked):
  """Whether PyTorch is asked for, and can run here."""
  unknown = set(asked or ()) - set(NAMES)
  if unknown:
    raise UserError(f"--implementations: {unknown.pop()!r} is none of {', '.join(NAMES)}")
  if asked is not None and not any(name.startswith("torch") for name in asked):
    return False
  if importlib.util.find_spec("torch") is None:
    print("PyTorch is not installed (pip install -e '.[torch]'): ours is measured alone")
    return False
  return True


def _names(asked, with_torch, on_cpu):
  """The contenders; ours is always among them."""
  default = [name for name in NAMES if not (on_cpu and name == COMPILED)]
  chosen = {OURS, *(default if asked is None else asked)}
  return [name for name in NAMES if name in chosen and (with_torch or name.startswith(OURS))]


def _batch_size(text, num_pairs):
  if not text.isdecimal() or not 2 <= int(text) <= num_pairs:
    raise UserError(f"--batch_sizes: {text!r} is no number from 2 to --num_pairs={num_pairs}")
  return int(text)


def _worker_count(text):
  if not text.isdecimal():
    raise UserError(f"--workers: {text!r} is no number of processes, 0 for none")
  return int(text)


def _ranking_sizes(asked):
  if unknown := set(asked or ()) - set(ranking.SIZES):
    raise UserError(f"--ranking_sizes: {min(unknown)!r} is none of {', '.join(ranking.SIZES)}")
  return asked or list(ranking.SIZES)


def _agreement(workload, names, options, console):
  """{"agreement": the comparison, or {"failed": why}}; {} where nothing is compared."""
  if not any(name.startswith("torch") for name in names):
    return {}
  console.print("one step of each implementation on the same numbers ...")
  try:
    with workers_lib.Worker(
      f"{PACKAGE}.agreement", "Agreement", workload, cores=options.threads
    ) as worker:
      return {"agreement": check_agreement(worker.call("compare"))}
  except (RuntimeError, UserError) as error:
    console.print(str(error))
    return {"agreement": {"failed": one_line(error)}}


def check_agreement(outcome: dict[str, Any]) -> dict[str, Any]:
  """Returns the comparison; raises RuntimeError when the implementations differ."""
  if not outcome["largest_difference"] < workload_lib.TOLERANCE:
    raise RuntimeError(f"the implementations do not compute the same: {outcome}")
  return outcome


def _settings(workload):
  config = workload.config
  height, width = config.dataset.image_size
  return {
    "model": config.model.name,
    "image_size": f"{height} x {width}",
    "context_length": config.tokenizer.context_length,
    "caption_tokens": float((workload_lib.captions(workload) > 0).sum(axis=1).mean()),
    "dtype": config.model.dtype,
    "remat": config.model.remat,
    "batch_size": config.batch_size,
    "num_pairs": workload.num_pairs,
    "association_batch": workload.association_batch,
  }


def _machine(described, jax_platform, threads):
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  kinds = {outcome["device"] for outcome in described if outcome["device"] != "cpu"}
  return {
    "description": f"{', '.join(sorted(kinds)) or 'CPU'} ({_processor()}, {cores} cores)",
    "platform": jax_platform,
    "threads": threads or cores,
    "versions": [outcome["version"] for outcome in described],
  }


def _processor():
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


def _steps(
  workload: workload_lib.Workload,
  contenders: Contenders,
  names: list[str],
  described: dict[str, Any],
  console: Any,
) -> Iterator[dict[str, Any]]:
  """Yields the measurements of the whole step whenever there are more of them."""
  config = workload.config
  peak = flops.peak_flops(described["device"])
  step = {
    "flops": _flops(workload, config.batch_size),
    "peak_flops": peak and peak * described["devices"],
    "implementations": {},
    "failed": {},
  }

  def ask(key, *request):
    """One more measurement of ours, which may fail."""
    try:
      step.update({key: contenders.worker(OURS).call(*request)})
    except (RuntimeError, UserError) as error:
      console.print(str(error))
      step["failed"][key] = one_line(error)

  first = names if contenders.on_cpu else [name for name in names if name in _FIRST_STEPS]
  for some in (first, [name for name in names if name not in first]):
    outcomes = step["implementations"] | contenders.measure("step", some, keep=True)
    step["implementations"] = {
      name: _with_flops(outcomes[name], workload, name, config.batch_size)
      for name in names
      if name in outcomes
    }
    yield step
    if OURS in some and "failed" not in step["implementations"][OURS]:
      ask("profile", "profile", task(OURS, "step"), _PROFILED_STEPS)
      yield step
  if "failed" not in step["implementations"][OURS] and not contenders.time_is_over:
    ask("input_wait", "input_wait", _FED_STEPS_ON_CPU if contenders.on_cpu else _FED_STEPS)
    yield step
  measured = [n for n, entry in step["implementations"].items() if "failed" not in entry]
  contenders.drop("step", measured)


def _flops(workload, batch_size, text_tokens=None, full_last_block=True):
  """FLOPs of a step; by default of the full arithmetic, padding included."""
  config = workload.config
  size = dual_encoder.SIZES[config.model.name]
  pair = flops.train_pair_flops(
    size,
    tuple(config.dataset.image_size),
    text_tokens or config.tokenizer.context_length,
    2 if config.loss.weights["consistency"] else 1,
    full_last_block,
    config.augment.patch_drop_ratio,
  )
  total = batch_size * pair + flops.bank_flops(batch_size, workload.num_pairs, size.feature_width)
  return total + flops.loss_flops(batch_size, size.feature_width, config.global_association.k)


def _with_flops(entry, workload, name, batch_size):
  """Adds the FLOPs that are done."""
  if "failed" in entry:
    return entry
  done = _flops(workload, batch_size, entry.get("text_tokens"), full_last_block=name != OURS)
  return entry | {"flops": done}


def _batches(
  workload: workload_lib.Workload,
  contenders: Contenders,
  names: list[str],
  sizes: list[int],
  step: dict[str, Any],
) -> Iterator[list[dict[str, Any]]]:
  """Yields the measurements of more batch sizes whenever there are more of them."""
  own = workload.config.batch_size
  entries = {size: {} for size in sorted({own, *sizes})}
  entries[own] = step["implementations"]
  first = [name for name in names if name in _FIRST_BATCHES]
  for some in (first, [name for name in names if name not in first]) if sizes else ():
    for size in entries:
      if size == own or not some:
        continue
      outcomes = contenders.measure("step", some, size)
      outcomes = {
        name: _with_flops(entry, workload, name, size) for name, entry in outcomes.items()
      }
      entries[size] = entries[size] | outcomes
      yield [
        {"batch_size": size, "implementations": {n: known[n] for n in names if n in known}}
        for size, known in entries.items()
        if known
      ]


def _with_shares(step, contenders, names):
  """Adds the parts of the step, each measured alone, and one matrix product."""
  some = [name for name in names if name != OURS_ALL_TOKENS]
  parts = {part: contenders.measure(part, some) for part in report.PARTS}
  implementations = {
    name: entry | {"parts": {part: outcomes[name] for part, outcomes in parts.items()}}
    if name in some
    else entry
    for name, entry in step["implementations"].items()
  }
  one_each = [name for name in (OURS, VECTORISED) if name in names]
  products = contenders.measure("product", one_each)
  return step | {
    "implementations": implementations,
    "product_flops": {
      name: 2 * workload_lib.PRODUCT_SIDE**3 / outcome["seconds"]["median"]
      for name, outcome in products.items()
      if "failed" not in outcome
    },
  }


def _ranking(size, with_torch, options, console):
  console.print(f"ranking {size} ...")
  queries, items = ranking.SIZES[size]
  implementations, workers, repeats = {}, {}, options.repeats
  try:
    for name in ("ours", "torch")[: 1 + with_torch]:
      needed = queries * items * ranking.TORCH_BYTES_PER_ENTRY
      free = timing.available_memory()
      if name == "torch" and free < needed:
        text = (
          f"skipped: needs {text_table.gigabytes(needed)}, {text_table.gigabytes(free)} are free"
        )
        implementations[name] = {"skipped": text}
        continue
      workers[name] = workers_lib.Worker(
        f"{PACKAGE}.ranking", "Ranking", name, cores=options.threads
      )
      facts = workers[name].call("prepare", size)
      implementations[name] = {"metrics": facts["metrics"], "before": facts["before"]}
      if workers[name].call("measure", size, 1) > _LONGEST_RANKING:
        repeats = min(repeats, 2)
    seconds = workers_lib.measure_in_turn(
      {name: (worker, size) for name, worker in workers.items()}, repeats
    )
    for name, worker in workers.items():
      outcome = implementations[name]
      outcome |= {
        "seconds": seconds[name],
        "memory": worker.call("peak_memory") - outcome.pop("before"),
      }
  finally:
    for worker in workers.values():
      worker.close()
  outcome = [implementations[name]["metrics"] for name in workers]
  if len(outcome) > 1:
    worst = max(abs(outcome[0][name] - outcome[1][name]) for name in outcome[0])
    if worst > ranking.TOLERANCE:
      raise RuntimeError(f"the rankings differ: {outcome}")
  return {"implementations": implementations}
