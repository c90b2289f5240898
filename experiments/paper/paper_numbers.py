"""Numbers published in the paper and its supplement, for comparison with ours.

`paper_numbers.json` holds them, and those of one method that the paper leaves out. For a dataset
that the paper does not use, every function returns None or {}.
"""

import functools
import json
import pathlib
from typing import Any

from dgia_jax.reporting import score_labels

METRICS = score_labels.SCORES
Scores = dict[str, float]  # metric -> percent
_FILE = pathlib.Path(__file__).with_name("paper_numbers.json")


@functools.cache
def numbers() -> dict[str, Any]:
  """Content of `paper_numbers.json`."""
  return json.loads(_FILE.read_text(encoding="utf-8"))


def published(title: str) -> dict[str, dict[str, Scores]]:
  """Methods of Tables 1-3: {kind of supervision: {method: scores}}."""
  return numbers()["main"].get(title, {})


def scores(title: str) -> Scores:
  """DGIA's own scores."""
  return published(title).get("weakly_supervised", {}).get("DGIA", {})


def ablation(table: str, title: str) -> dict[str, float]:
  """R@1 of Tables 4-6, {setting: percent}."""
  content = numbers()[table]
  return dict(zip(content["settings"], content.get(title, ()), strict=False))


def mask_ratio(title: str) -> dict[float, float]:
  """R@1 of Figure 3, {mask ratio: percent}."""
  content = numbers()["fig3_mask_ratio_R1"]
  return dict(zip(content["ratios"], content.get(title, ()), strict=False))


def relation_accuracy(title: str) -> float | None:
  """Final precision of mined relations in Figure 4, in percent."""
  return numbers()["fig4_relation_accuracy"]["final"].get(title)


def cross_dataset(trained: str, tested: str) -> Scores:
  """R@1 and mAP of supplement Table 1, for the titles of the training and the test dataset."""
  row = numbers()["supp_table1_cross_dataset"].get(f"train {trained}", {})
  return dict(zip(("R1", "mAP"), row.get(tested, ()), strict=False))


def masked_queries(title: str, method: str = "DGIA") -> dict[float, Scores]:
  """{mask ratio: R@1 and mAP} of supplement Table 2."""
  content = numbers()["supp_table2_masked_queries"]
  rows = content.get(title, {}).get(method, [])
  return {
    ratio: dict(zip(content["columns"], row, strict=True))
    for ratio, row in zip(content["mask_ratios"], rows, strict=False)
  }


def complexity(title: str) -> dict[str, dict[str, float | None]]:
  """{method: {"params_M", "flops_G", "inference_s", ..}} of supplement Table 3, CUHK-PEDES only."""
  if title != "CUHK-PEDES":
    return {}
  content = numbers()["supp_table3_complexity_CUHK"]
  methods = {name: row for name, row in content.items() if isinstance(row, list)}
  methods.pop("columns")
  return {name: dict(zip(content["columns"], row, strict=True)) for name, row in methods.items()}


def not_in_the_paper(title: str) -> dict[str, Scores]:
  """{method: scores} of comparable methods that the paper does not list."""
  rows = numbers()["not_in_the_paper"]
  return {name: row[title] for name, row in rows.items() if title in row}
