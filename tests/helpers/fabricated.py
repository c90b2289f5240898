"""Fabricated runs: the files of a finished training, with made-up numbers."""

import json
from collections.abc import Iterable, Mapping

from dgia_jax import files
from dgia_jax.reporting import metrics_writer
from dgia_jax.training import workdir as workdir_lib
from experiments.paper import runs

NAMES = ("R1", "R5", "R10", "mAP", "mINP")


def scores(first: float) -> dict[str, float]:
  """Five different scores, beginning with `first`."""
  return {name: first + 10.0 * i for i, name in enumerate(NAMES)}


def finish(
  run: runs.ExperimentRun,
  last: float,
  val: float | None = None,
  test: float | None = None,
  log: Iterable[Mapping] = (),
) -> None:
  """Writes config.json, results.json and metrics.jsonl of a run.

  Args:
    run: to finish.
    last, val, test: R@1 on test at the last epoch, and at the epochs best on val and on test.
    log: lines of metrics.jsonl.
  """
  run.folder.mkdir(parents=True, exist_ok=True)
  files.write_json(run.folder / workdir_lib.CONFIG, run.config.to_dict())
  best = {split: value for split, value in (("val", val), ("test", test)) if value is not None}
  content = {
    "last": {"epoch": run.config.num_epochs, "step": 7, "t2i": scores(last), "i2t": scores(0.0)},
    "best_by_split": {s: {"epoch": 1, "t2i": scores(value)} for s, value in best.items()},
    "last_by_split": {"val": {"t2i": scores(last - 10.0)}},
    "wall_time_seconds": 12.0,
    "device": "1 x cpu",
    "seed": run.seed,
  }
  files.write_json(run.folder / workdir_lib.RESULTS, content)
  text = "".join(json.dumps(line) + "\n" for line in log)
  (run.folder / metrics_writer.METRICS).write_text(text)
