"""Supplement Table 1: tests a run on a dataset on which it was not trained.

Images have the run's own size, and captions pass through the run's own tokenizer.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from dgia_jax.training import evaluate
from experiments.paper.measures import finished


def measure(
  config: ConfigDict, folder: pathlib.Path, splits: finished.Splits, choice: str
) -> dict[str, Any]:
  """Text-to-image scores of a run on a split of any dataset, in percent.

  Returns:
    {"step", "queries", "gallery", "scores": {"R1", .., "mINP"}}.
  """
  setup, params, step = finished.open_run(config, folder, splits, choice)
  scores, _ = evaluate.Evaluator(setup).score(params, "test")
  pairs = splits["test"]
  return {
    "step": step,
    "queries": pairs.num_pairs,
    "gallery": pairs.num_images,
    "scores": scores["t2i"],
  }
