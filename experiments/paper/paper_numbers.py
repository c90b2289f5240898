"""The numbers the paper and its supplement print, for the column beside ours.

`paper_numbers.json` holds them as published, and one method that the paper leaves out. A dataset
that the paper does not use has no numbers: every function then says None or {}.
"""

import functools
import json
import pathlib

from dgia_jax.reporting import score_labels

METRICS = score_labels.SCORES
_FILE = pathlib.Path(__file__).with_name("paper_numbers.json")


@functools.cache
def numbers():
  """Everything, as the file has it."""
  return json.loads(_FILE.read_text(encoding="utf-8"))


def published(title):
  """Methods of Tables 1-3 by kind of supervision: {kind: {method: {metric: percent}}}."""
  return numbers()["main"].get(title, {})


def scores(title):
  """DGIA's own scores, {metric: percent}; {} for a dataset the paper does not use."""
  return published(title).get("weakly_supervised", {}).get("DGIA", {})


def ablation(table, title):
  """R@1 of Tables 4-6, {setting: percent}; {} for a dataset the paper does not use."""
  content = numbers()[table]
  return dict(zip(content["settings"], content.get(title, ()), strict=False))


def mask_ratio(title):
  """R@1 of Figure 3, {mask ratio: percent}."""
  content = numbers()["fig3_mask_ratio_R1"]
  return dict(zip(content["ratios"], content.get(title, ()), strict=False))


def relation_accuracy(title):
  """Precision of mined relations at the end of Figure 4, in percent, or None."""
  return numbers()["fig4_relation_accuracy"]["final"].get(title)


def cross_dataset(trained, tested):
  """{"R1", "mAP"} of supplement Table 1 for two titles; {} where it has none."""
  row = numbers()["supp_table1_cross_dataset"].get(f"train {trained}", {})
  return dict(zip(("R1", "mAP"), row.get(tested, ()), strict=False))


def masked_queries(title, method="DGIA"):
  """{ratio: {"R1", "mAP"}} of supplement Table 2."""
  content = numbers()["supp_table2_masked_queries"]
  rows = content.get(title, {}).get(method, [])
  return {
    ratio: dict(zip(content["columns"], row, strict=True))
    for ratio, row in zip(content["mask_ratios"], rows, strict=False)
  }


def complexity(title):
  """{method: {"params_M", "flops_G", "inference_s", ..}} of supplement Table 3, CUHK-PEDES only."""
  if title != "CUHK-PEDES":
    return {}
  content = numbers()["supp_table3_complexity_CUHK"]
  methods = {name: row for name, row in content.items() if isinstance(row, list)}
  methods.pop("columns")
  return {name: dict(zip(content["columns"], row, strict=True)) for name, row in methods.items()}


def not_in_the_paper(title):
  """{method: {metric: percent}} of comparable methods that the paper does not list."""
  rows = numbers()["not_in_the_paper"]
  return {name: row[title] for name, row in rows.items() if title in row}
