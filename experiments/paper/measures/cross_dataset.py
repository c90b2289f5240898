"""Supplement Table 1: a run trained on one dataset, tested on another, without any training there.

Images come at the run's own size, captions through the run's own tokenizer.
"""

from dgia_jax.training import evaluate
from experiments.paper.measures import finished


def measure(config, folder, splits, choice):
  """Scores of a run on the test split of any dataset.

  Args:
    config, folder, choice: as `finished.open_run`.
    splits: {"test": PairTable} of the dataset to test on, read at the run's image size.

  Returns:
    {"step", "queries", "gallery", "scores": {"R1", .., "mINP"}}, percent, text to image.
  """
  parts, params, step = finished.open_run(config, folder, splits, choice)
  scores, _ = evaluate.Evaluator(parts).score(params, "test")
  pairs = splits["test"]
  return {
    "step": step,
    "queries": pairs.num_pairs,
    "gallery": pairs.num_images,
    "scores": scores["t2i"],
  }
