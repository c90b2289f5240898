"""Runs that look finished: the files a training leaves behind, with made-up numbers."""

import json

from dgia_jax import files
from dgia_jax.training import workdir as workdir_lib

NAMES = ("R1", "R5", "R10", "mAP", "mINP")


def scores(first):
  """Five different scores that start at `first`."""
  return {name: first + 10.0 * place for place, name in enumerate(NAMES)}


def finish(run, last, val=None, test=None, lines=()):
  """Writes config.json, results.json and metrics.jsonl of a run.

  Args:
    run: runs.ExperimentRun.
    last, val, test: R@1 on test at the last epoch and at those best on val and on test.
    lines: of metrics.jsonl.
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
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (run.folder / workdir_lib.METRICS).write_text(text)
