"""The declared experiments match the paper's tables."""

import pytest

from configs import custom, synth_pedes
from dgia_jax import config as config_lib
from experiments.paper import additions, paper_numbers, render, tables

EXPERIMENTS = tables.EXPERIMENTS


def labels(name: str) -> list[str]:
  return [setting.label for setting in EXPERIMENTS[name].settings]


def test_every_table_and_figure_is_declared_and_has_a_form():
  assert list(EXPERIMENTS) == [
    "main", "modules", "local", "global", "mask_ratio", "relation_accuracy", "cross_dataset",
    "masked_queries", "complexity", "tsne", "attention", "reference", "strict_mining",
    "gates", "ideas", "loss_weights", "loss_sizes",
  ]  # fmt: skip
  assert {experiment.form for experiment in EXPERIMENTS.values()} <= set(render.FORMS)
  assert [name for name, experiment in EXPERIMENTS.items() if experiment.name != name] == []


@pytest.mark.parametrize("name", ["modules", "local", "global"])
def test_rows_are_in_the_papers_order(name):
  published = paper_numbers.numbers()[EXPERIMENTS[name].paper_table]["settings"]
  assert labels(name) == published


def test_the_setting_plus_is_the_variant_plus():
  variant = config_lib.changed_fields(synth_pedes.get_config("plus"))
  released = config_lib.changed_fields(synth_pedes.get_config())
  assert variant == released | additions.PLUS | additions.INITIAL


def test_only_mini_is_averaged_with_the_trained_weights():
  from_clip, from_scratch = (custom.get_config(name) for name in ("plus", "tiny_plus"))
  for config in (from_clip, from_scratch):
    assert config.eval.weights == "raw" and config.ema.initial_share == 0


def test_mask_ratios_are_the_papers():
  assert [float(label) for label in labels("mask_ratio")] == paper_numbers.numbers()[
    "fig3_mask_ratio_R1"
  ]["ratios"]


def test_published_numbers_are_consistent():
  for name in tables.BENCHMARKS:
    title = tables.DATASETS[name].title
    assert (
      paper_numbers.scores(title)["R1"]
      == paper_numbers.ablation("table4_modules_R1", title)["B+LRC+GSRC-FR+IASC-CL"]
    )
    assert paper_numbers.mask_ratio(title)[0.5] == paper_numbers.scores(title)["R1"]
    assert paper_numbers.cross_dataset(title, title)["mAP"] == paper_numbers.scores(title)["mAP"]
    assert paper_numbers.masked_queries(title)[0.5]["R1"] > 20
    assert paper_numbers.relation_accuracy(title) > 70
    assert "ICPG" in paper_numbers.not_in_the_paper(title)


def test_other_datasets_have_no_published_numbers():
  for title in ("synth_pedes", "custom"):
    assert (
      paper_numbers.scores(title)
      == paper_numbers.mask_ratio(title)
      == paper_numbers.masked_queries(title)
      == {}
    )
    assert (
      paper_numbers.ablation("table4_modules_R1", title) == paper_numbers.complexity(title) == {}
    )
    assert paper_numbers.relation_accuracy(title) is None
