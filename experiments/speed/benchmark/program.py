"""The benchmark from flags to files: who is measured, in which order, and what is kept."""

import datetime
import importlib.util
import os
import pathlib
import platform
import shlex
import sys

from dgia_jax import files
from dgia_jax.dry_run import flops
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder
from experiments.speed.benchmark import comparison, input_speed, ranking, report, tables, timing
from experiments.speed.benchmark import problem as problem_lib

OURS, LOOPS, VECTORISED = CONTENDERS = ("ours", "torch loops", "torch vectorised")
_FED_STEPS = {"cpu": 3}  # steps on real input, by platform
_FED_STEPS_ELSEWHERE = 100
_PROFILED_STEPS = 3
_CALLS = {"cpu": 1}  # calls a measurement is the mean of
_CALLS_ELSEWHERE = 10
_LONGEST_RANKING = 10  # seconds; rankings that take longer are repeated twice only
_PACKAGE = "experiments.speed.benchmark"


def main(options):
  """Runs what the flags ask for, prints it and writes it.

  Args:
    options: the parsed flags of `__main__`.

  Raises:
    UserError: for whatever the user can mend.
  """
  problem = problem_lib.Problem(
    options.config.to_dict(), options.num_pairs, options.association_batch
  )
  problem_lib.check(problem)
  names = _contenders(options.contenders)
  # Two frameworks share one GPU here: neither may take all of its memory in advance.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  console = tables.console()
  results = {
    "command": f"python -m {_PACKAGE} {shlex.join(sys.argv[1:])}",
    "date": datetime.date.today().isoformat(),
    "settings": _settings(problem),
  }
  bound = options.threads

  def keep(**found):
    """Adds what was found, and writes all of it: what follows may fail."""
    results.update(found)
    if options.out:
      pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)
      files.write_json(pathlib.Path(options.out).with_suffix(".json"), results)

  if {"step", "association"} & set(options.part):
    if len(names) > 1:
      console.print("one step of each contender on the same numbers ...")
      with comparison.Worker(f"{_PACKAGE}.agreement", "Agreement", problem, cores=bound) as worker:
        keep(agreement=_agreeing(worker.call("compare")))
    for found in _contest(problem, names, options, console):
      keep(**found)
  else:
    keep(machine=_machine([], "cpu", bound))
  if "ranking" in options.part:
    for size in options.ranking_sizes or list(ranking.SIZES):
      found = {size: _ranking(size, len(names) > 1, options, console)}
      keep(ranking=results.get("ranking", {}) | found)
  if "input" in options.part:
    console.print("input ...")
    workers = [int(count) for count in options.workers]
    keep(input=input_speed.measure(workers, options.input_seconds))
  keep(targets=report.targets(results))
  for table in report.tables(results):
    table.show(console)
  if options.out:
    out = pathlib.Path(options.out)
    out.with_suffix(".md").write_text(report.markdown(results), encoding="utf-8")
    console.print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.md')}")


def _contenders(asked):
  """Those of the contenders that can run here; ours is always among them."""
  unknown = set(asked) - set(CONTENDERS)
  if unknown:
    raise UserError(f"--contenders: {unknown.pop()!r} is none of {', '.join(CONTENDERS)}")
  if importlib.util.find_spec("torch") is None:
    print("PyTorch is not installed (pip install -e '.[torch]'): ours is measured alone")
    return [OURS]
  return [name for name in CONTENDERS if name in asked or name == OURS]


def _agreeing(found):
  """The comparison, when the contenders compute the same."""
  if not found["largest_difference"] < problem_lib.TOLERANCE:
    raise RuntimeError(f"the contenders do not compute the same: {found}")
  return found


def _settings(problem):
  config = problem.config
  height, width = config.dataset.image_size
  return {
    "model": config.model.name,
    "image_size": f"{height} x {width}",
    "context_length": config.tokenizer.context_length,
    "dtype": config.model.dtype,
    "remat": config.model.remat,
    "batch_size": config.batch_size,
    "num_pairs": problem.num_pairs,
    "association_batch": problem.association_batch,
  }


def _machine(described, jax_platform, threads):
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  kinds = {found["device"] for found in described if found["device"] != "cpu"}
  return {
    "description": f"{', '.join(sorted(kinds)) or 'CPU'} ({_processor()}, {cores} cores)",
    "platform": jax_platform,
    "threads": threads or cores,
    "versions": [found["version"] for found in described],
  }


def _processor():
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


def _contest(problem, names, options, console):
  """Yields results as they are found: the machine, the whole step, the association by itself."""
  with comparison.Worker(
    f"{_PACKAGE}.jax_step", "JaxContender", problem, cores=options.threads
  ) as ours:
    workers = {OURS: ours}
    described = [ours.call("describe")]
    if len(names) > 1:
      torch = comparison.Worker(
        f"{_PACKAGE}.torch_step", "TorchContender", problem, cores=options.threads
      )
      workers |= dict.fromkeys(names[1:], torch)
      described.append(torch.call("describe"))
    platform_name = described[0]["platform"]
    yield {"machine": _machine(described, platform_name, options.threads)}
    arena = _Arena(workers, options, platform_name, console)
    try:
      if "step" in options.part:
        yield {"step": _step(problem, arena, described[0])}
      if "association" in options.part:
        seconds, _ = arena.measure("association")
        dim = dual_encoder.SIZES[problem.config.model.name].feature_width
        yield {"association": {"contenders": seconds, "dim": dim}}
    finally:
      if len(names) > 1:
        torch.close()


class _Arena:
  """Prepares a part for every contender, measures it in turn, and clears it away."""

  def __init__(self, workers, options, platform_name, console):
    self.workers, self.platform = workers, platform_name
    self._repeats, self._console = options.repeats, console
    self._calls = options.calls or _CALLS.get(platform_name, _CALLS_ELSEWHERE)

  def measure(self, part, keep=False):
    """({contender: summary in seconds}, {contender: facts}) of a part."""
    self._console.print(f"{part} ...")
    entries, facts = {}, {}
    for name, worker in self.workers.items():
      entry = self._entry(name, part)
      facts[name] = worker.call("prepare", entry)
      entries[name] = (worker, entry)
    seconds = comparison.alternate(entries, self._repeats, self._calls, warm=True)
    if not keep:
      self.drop(part)
    return seconds, facts

  def drop(self, part):
    """Frees a part that was kept."""
    entries = {(self.workers[name], self._entry(name, part)) for name in self.workers}
    for worker, entry in entries:  # each once, where contenders share a process and a part
      worker.call("drop", entry)

  @staticmethod
  def _entry(name, part):
    """A part as the contender's process calls it."""
    # The PyTorch contenders share a process and differ in how they associate.
    return part if name == OURS or "/" in part else f"{part}/{name.removeprefix('torch ')}"


def _step(problem, arena, described):
  config, settings = problem.config, _settings(problem)
  seconds, facts = arena.measure("step", keep=True)
  contenders = {
    name: {"seconds": seconds[name], **facts[name], "peak_memory": worker.call("peak_memory")}
    for name, worker in arena.workers.items()
  }
  fed = _FED_STEPS.get(arena.platform, _FED_STEPS_ELSEWHERE)
  wait = arena.workers[OURS].call("input_wait", fed)
  device_time = arena.workers[OURS].call("profile", "step", _PROFILED_STEPS)
  arena.drop("step")
  for part in report.PARTS:
    seconds, _ = arena.measure(part)
    for name, summary in seconds.items():
      contenders[name].setdefault("parts", {})[part] = summary
  products, _ = arena.measure("product")
  size = dual_encoder.SIZES[config.model.name]
  views = 2 if config.loss.weights["consistency"] else 1
  pair = flops.train_pair_flops(
    size, tuple(config.dataset.image_size), settings["context_length"], views
  )
  batch, dim = config.batch_size, size.feature_width
  total = batch * pair + flops.bank_flops(batch, problem.num_pairs, dim)
  total += flops.loss_flops(batch, dim, config.global_association.k)
  peak = flops.peak_flops(described["device"])
  return {
    "contenders": contenders,
    "input_wait": wait,
    "device_time": device_time,
    "flops": total,
    "peak_flops": peak and peak * described["devices"],
    "product_flops": {
      name: 2 * problem_lib.PRODUCT_SIDE**3 / summary["median"]
      for name, summary in products.items()
    },
  }


def _ranking(size, with_torch, options, console):
  console.print(f"ranking {size} ...")
  if size not in ranking.SIZES:
    raise UserError(f"--ranking_sizes: {size!r} is none of {', '.join(ranking.SIZES)}")
  queries, items = ranking.SIZES[size]
  contenders, workers, repeats = {}, {}, options.repeats
  try:
    for name in ("ours", "torch")[: 1 + with_torch]:
      needed = queries * items * ranking.TORCH_BYTES_PER_ENTRY
      free = timing.available_memory()
      if name == "torch" and free < needed:
        text = f"skipped: needs {tables.gigabytes(needed)}, {tables.gigabytes(free)} are free"
        contenders[name] = {"skipped": text}
        continue
      workers[name] = comparison.Worker(
        f"{_PACKAGE}.ranking", "Ranking", name, cores=options.threads
      )
      facts = workers[name].call("prepare", size)
      contenders[name] = {"metrics": facts["metrics"], "before": facts["before"]}
      if workers[name].call("measure", size, 1) > _LONGEST_RANKING:
        repeats = min(repeats, 2)
    seconds = comparison.alternate(
      {name: (worker, size) for name, worker in workers.items()}, repeats
    )
    for name, worker in workers.items():
      found = contenders[name]
      found |= {
        "seconds": seconds[name],
        "memory": worker.call("peak_memory") - found.pop("before"),
      }
  finally:
    for worker in workers.values():
      worker.close()
  found = [contenders[name]["metrics"] for name in workers]
  if len(found) > 1:
    worst = max(abs(found[0][name] - found[1][name]) for name in found[0])
    if worst > ranking.TOLERANCE:
      raise RuntimeError(f"the rankings differ: {found}")
  return {"contenders": contenders}
