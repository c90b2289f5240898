"""The benchmark from flags to files: measures the implementations in order and stores results."""

import datetime
import importlib.util
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

from dgia_jax import files
from dgia_jax.dry_run import flops
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder
from experiments.speed.benchmark import input_speed, ranking, report, text_table, timing
from experiments.speed.benchmark import workers as workers_lib
from experiments.speed.benchmark import workload as workload_lib

OURS, LOOPS, VECTORISED = IMPLEMENTATIONS = ("ours", "torch loops", "torch vectorised")
_FED_STEPS = {"cpu": 3}  # steps on real input, by platform
_FED_STEPS_ELSEWHERE = 100
_PROFILED_STEPS = 3
_CALLS = {"cpu": 1}  # calls a measurement is the mean of
_CALLS_ELSEWHERE = 10
_LONGEST_RANKING = 10  # seconds; rankings that take longer are repeated twice only
_PACKAGE = "experiments.speed.benchmark"


def main(options: Any) -> None:
  """Runs the parts that the flags choose, prints and writes the results.

  Args:
    options: the parsed flags of `__main__`.

  Raises:
    UserError: for whatever the user can mend.
  """
  workload = workload_lib.Workload(
    options.config.to_dict(), options.num_pairs, options.association_batch
  )
  workload_lib.check(workload)
  names = _implementations(options.implementations)
  # Two frameworks share one GPU here: neither may take all of its memory in advance.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  console = text_table.console()
  results = {
    "command": f"python -m {_PACKAGE} {shlex.join(sys.argv[1:])}",
    "date": datetime.date.today().isoformat(),
    "settings": _settings(workload),
  }
  bound = options.threads

  def keep(**outcome):
    """Adds an outcome and writes all results: later parts may fail."""
    results.update(outcome)
    if options.out:
      pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)
      files.write_json(pathlib.Path(options.out).with_suffix(".json"), results)

  if {"step", "association"} & set(options.part):
    if len(names) > 1:
      console.print("one step of each implementation on the same numbers ...")
      with workers_lib.Worker(
        f"{_PACKAGE}.agreement", "Agreement", workload, cores=bound
      ) as worker:
        keep(agreement=check_agreement(worker.call("compare")))
    for outcome in _measure_implementations(workload, names, options, console):
      keep(**outcome)
  else:
    keep(machine=_machine([], "cpu", bound))
  if "ranking" in options.part:
    for size in options.ranking_sizes or list(ranking.SIZES):
      outcome = {size: _ranking(size, len(names) > 1, options, console)}
      keep(ranking=results.get("ranking", {}) | outcome)
  if "input" in options.part:
    console.print("input ...")
    workers = [int(count) for count in options.workers]
    keep(input=input_speed.measure(workers, options.input_seconds))
  keep(targets=report.targets(results))
  for table in report.make_tables(results):
    table.show(console)
  if options.out:
    out = pathlib.Path(options.out)
    files.write_text(out.with_suffix(".md"), report.markdown(results))
    console.print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.md')}")


def _implementations(asked):
  """Those of the implementations that can run here; ours is always among them."""
  unknown = set(asked) - set(IMPLEMENTATIONS)
  if unknown:
    raise UserError(f"--implementations: {unknown.pop()!r} is none of {', '.join(IMPLEMENTATIONS)}")
  if importlib.util.find_spec("torch") is None:
    print("PyTorch is not installed (pip install -e '.[torch]'): ours is measured alone")
    return [OURS]
  return [name for name in IMPLEMENTATIONS if name in asked or name == OURS]


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


def _measure_implementations(workload, names, options, console):
  """Yields results as they are measured: the machine, the whole step, the association alone."""
  with workers_lib.Worker(
    f"{_PACKAGE}.jax_step", "JaxImplementation", workload, cores=options.threads
  ) as ours:
    workers = {OURS: ours}
    described = [ours.call("describe")]
    if len(names) > 1:
      torch = workers_lib.Worker(
        f"{_PACKAGE}.torch_step", "TorchImplementation", workload, cores=options.threads
      )
      workers |= dict.fromkeys(names[1:], torch)
      described.append(torch.call("describe"))
    platform_name = described[0]["platform"]
    yield {"machine": _machine(described, platform_name, options.threads)}
    measurer = _Measurer(workers, options, platform_name, console)
    try:
      if "step" in options.part:
        yield {"step": _step(workload, measurer, described[0])}
      if "association" in options.part:
        seconds, _ = measurer.measure("association")
        dim = dual_encoder.SIZES[workload.config.model.name].feature_width
        yield {"association": {"implementations": seconds, "dim": dim}}
    finally:
      if len(names) > 1:
        torch.close()


class _Measurer:
  """Prepares a part for every implementation, measures it in turn, and clears it away."""

  def __init__(self, workers, options, platform_name, console):
    self.workers, self.platform = workers, platform_name
    self._repeats, self._console = options.repeats, console
    self._calls = options.calls or _CALLS.get(platform_name, _CALLS_ELSEWHERE)

  def measure(self, part, keep=False):
    """({implementation: summary in seconds}, {implementation: facts}) of a part."""
    self._console.print(f"{part} ...")
    entries, facts = {}, {}
    for name, worker in self.workers.items():
      entry = self._entry(name, part)
      facts[name] = worker.call("prepare", entry)
      entries[name] = (worker, entry)
    seconds = workers_lib.measure_in_turn(entries, self._repeats, self._calls, warm=True)
    if not keep:
      self.drop(part)
    return seconds, facts

  def drop(self, part):
    """Frees a part that was kept."""
    entries = {(self.workers[name], self._entry(name, part)) for name in self.workers}
    for worker, entry in entries:  # each once, where implementations share a process and a part
      worker.call("drop", entry)

  @staticmethod
  def _entry(name, part):
    """A part as the implementation's process calls it."""
    # The PyTorch implementations share a process and differ in how they associate.
    return part if name == OURS or "/" in part else f"{part}/{name.removeprefix('torch ')}"


def _step(workload, measurer, described):
  config, settings = workload.config, _settings(workload)
  seconds, facts = measurer.measure("step", keep=True)
  implementations = {
    name: {"seconds": seconds[name], **facts[name], "peak_memory": worker.call("peak_memory")}
    for name, worker in measurer.workers.items()
  }
  fed = _FED_STEPS.get(measurer.platform, _FED_STEPS_ELSEWHERE)
  wait = measurer.workers[OURS].call("input_wait", fed)
  device_time = measurer.workers[OURS].call("profile", "step", _PROFILED_STEPS)
  measurer.drop("step")
  for part in report.PARTS:
    seconds, _ = measurer.measure(part)
    for name, summary in seconds.items():
      implementations[name].setdefault("parts", {})[part] = summary
  products, _ = measurer.measure("product")
  size = dual_encoder.SIZES[config.model.name]
  views = 2 if config.loss.weights["consistency"] else 1
  pair = flops.train_pair_flops(
    size, tuple(config.dataset.image_size), settings["context_length"], views
  )
  batch, dim = config.batch_size, size.feature_width
  total = batch * pair + flops.bank_flops(batch, workload.num_pairs, dim)
  total += flops.loss_flops(batch, dim, config.global_association.k)
  peak = flops.peak_flops(described["device"])
  return {
    "implementations": implementations,
    "input_wait": wait,
    "device_time": device_time,
    "flops": total,
    "peak_flops": peak and peak * described["devices"],
    "product_flops": {
      name: 2 * workload_lib.PRODUCT_SIDE**3 / summary["median"]
      for name, summary in products.items()
    },
  }


def _ranking(size, with_torch, options, console):
  console.print(f"ranking {size} ...")
  if size not in ranking.SIZES:
    raise UserError(f"--ranking_sizes: {size!r} is none of {', '.join(ranking.SIZES)}")
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
        f"{_PACKAGE}.ranking", "Ranking", name, cores=options.threads
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
