"""The names under which scores are printed: in tables, model cards and reports."""

from collections.abc import Mapping

SCORES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "mAP": "mAP", "mINP": "mINP"}
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
CORRECTIONS = {
  "smoothed": "gallery smoothed",
  "hubs_corrected": "hubs corrected",
  "reranked": "re-ranked",
  "together": "all of these",
}


def percents(scores: Mapping[str, float]) -> list[str]:
  """The scores of one direction, formatted with two decimals in the order of `SCORES`."""
  return [f"{scores[name]:.2f}" for name in SCORES]
