"""The declarations against the paper's tables."""

import pytest

from experiments import declarations, paper, sections

EXPERIMENTS = declarations.EXPERIMENTS


def labels(name):
  return [setting.label for setting in EXPERIMENTS[name].settings]


def test_every_table_and_figure_is_declared_and_has_a_form():
  assert list(EXPERIMENTS) == [
    "main", "modules", "local", "global", "mask_ratio", "relation_accuracy", "cross_dataset",
    "masked_queries", "complexity", "tsne", "attention", "reference", "plus",
  ]  # fmt: skip
  assert {experiment.form for experiment in EXPERIMENTS.values()} <= set(sections.FORMS)
  assert [name for name, experiment in EXPERIMENTS.items() if experiment.name != name] == []


@pytest.mark.parametrize("name", ["modules", "local", "global"])
def test_rows_stand_in_the_papers_order(name):
  published = paper.numbers()[EXPERIMENTS[name].paper_table]["settings"]
  assert labels(name) == published


def test_mask_ratios_are_the_papers():
  assert [float(label) for label in labels("mask_ratio")] == paper.numbers()["fig3_mask_ratio_R1"][
    "ratios"
  ]


def test_titles_find_the_papers_numbers():
  for name in declarations.BENCHMARKS:
    title = declarations.DATASETS[name].title
    assert (
      paper.scores(title)["R1"]
      == paper.ablation("table4_modules_R1", title)["B+LRC+GSRC-FR+IASC-CL"]
    )
    assert paper.mask_ratio(title)[0.5] == paper.scores(title)["R1"]
    assert paper.cross_dataset(title, title)["mAP"] == paper.scores(title)["mAP"]
    assert paper.masked_queries(title)[0.5]["R1"] > 20
    assert paper.relation_accuracy(title) > 70
    assert "ICPG" in paper.not_in_the_paper(title)


def test_a_dataset_of_ones_own_has_no_paper_numbers():
  for title in ("synth_pedes", "custom"):
    assert paper.scores(title) == paper.mask_ratio(title) == paper.masked_queries(title) == {}
    assert paper.ablation("table4_modules_R1", title) == paper.complexity(title) == {}
    assert paper.relation_accuracy(title) is None
