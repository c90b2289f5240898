"""Measurements are stored in a run's folder and taken again on other data."""

import json
import pathlib
from typing import Any

import pytest

from dgia_jax.errors import UserError
from experiments import run as run_lib
from experiments.paper import measuring, runs, tables, targets
from experiments.paper.targets import Target
from tests.helpers import fabricated, fake_datasets

SETTING = tables.EXPERIMENTS["cross_dataset"].settings[0]


def options(workdir: pathlib.Path, dataset: str = "synth_pedes", **fields: Any) -> runs.Options:
  return runs.Options(tables.DATASETS[dataset], workdir, **fields)


@pytest.fixture
def measured(tmp_path, monkeypatch):
  """Function (name, target, options) -> a measurement of a finished run, which holds its data."""

  def load_pairs(settings_json, split):
    settings = json.loads(settings_json)
    return f"{settings['name']} {split}", "original-1"

  def measure(config, folder, splits, choice):
    return {"pairs": splits["test"], "choice": choice, "count": next(count)}

  def take(name, target, chosen, compute=True):
    run = runs.make_run(chosen, SETTING, 0)
    if not run.folder.exists():
      fabricated.finish(run, last=20.0)
    return measuring.stored_or_new(measure, name, chosen, run, target, compute, lambda text: None)

  count = iter(range(100))
  monkeypatch.setattr(measuring, "_load_pairs", load_pairs)
  return take


def files_of(workdir: pathlib.Path) -> set[str]:
  return {path.name for path in workdir.rglob("measures/*.json")}


def test_the_split_of_the_options_is_measured_under_its_own_name(tmp_path, measured):
  for split in ("test", "val", "test"):
    chosen = options(tmp_path, split=split)
    assert measured("tsne", targets.own(chosen), chosen)["pairs"] == f"synth_pedes {split}"
  assert files_of(tmp_path) == {"tsne-last.json", "tsne-val-last.json"}


def test_a_measurement_on_another_dataset_belongs_to_its_content(tmp_path, measured):
  chosen = options(tmp_path)
  first, second = (Target("custom", "tiny", str(tmp_path / name)) for name in "ab")
  for number, target in enumerate((first, second)):
    fake_datasets.write_json(pathlib.Path(target.source, "annotations.json"), [number])
  take = lambda target, **more: measured("cross_dataset", target, chosen, **more)
  before = take(first)
  assert before["data"]["dataset"] == "custom:tiny" and before["data"]["source"] == first.source
  assert take(first) == take(first, compute=False) == before
  with pytest.raises(UserError, match=f"measured on other data.*{first.source}.*--report_only"):
    take(second, compute=False)
  after = take(second)
  assert after["count"] == before["count"] + 1 and after["data"]["source"] == second.source
  assert files_of(tmp_path) == {"cross_dataset-custom-tiny-last.json"}
  with pytest.raises(UserError, match="no folder"):
    take(Target("custom", "tiny", str(tmp_path / "missing")))
  pathlib.Path(second.source, "annotations.json").unlink()
  assert take(second, compute=False) == after


def test_a_drawn_dataset_belongs_to_its_options(tmp_path, measured):
  chosen = options(tmp_path)
  target = Target("synth_pedes", "scratch")
  before = measured("cross_dataset", target, chosen)
  assert measured("cross_dataset", target, chosen) == before
  (path,) = tmp_path.rglob("measures/*.json")
  path.write_text(json.dumps(before | {"data": {"source": "", "content": {"options": "{}"}}}))
  assert measured("cross_dataset", target, chosen)["count"] == before["count"] + 1


def test_a_measurement_of_an_earlier_release_is_used(tmp_path, measured):
  chosen = options(tmp_path)
  target = Target("cuhk_pedes")
  path = (
    runs.make_run(chosen, SETTING, 0).folder / "measures" / "cross_dataset-cuhk_pedes-last.json"
  )
  path.parent.mkdir(parents=True)
  path.write_text('{"scores": 1}')
  assert measured("cross_dataset", target, chosen, compute=False) == {"scores": 1}


def test_named_and_implied_targets(tmp_path):
  def labels(dataset, named, experiment="cross_dataset", **fields):
    chosen = options(tmp_path, dataset, **fields)
    declared = tables.EXPERIMENTS[experiment]
    return [target.label for target in targets.of_experiment(declared, chosen, named)]

  own, scratch = Target("synth_pedes"), Target("synth_pedes", "scratch")
  assert labels("synth_pedes", []) == labels("synth_pedes", [own]) == []
  assert labels("synth_pedes", [own, scratch]) == ["synth_pedes:scratch"]
  assert labels("synth_pedes", [own, scratch], variant="scratch") == []
  assert labels("synth_pedes", [scratch], "tsne") == ["synth_pedes"]
  assert labels("cuhk_pedes", []) == ["icfg_pedes", "rstp_reid"]
  held_out = Target("icfg_pedes", "holdout", "folder")
  assert labels("cuhk_pedes", [own, held_out]) == [
    "rstp_reid", "synth_pedes", "icfg_pedes:holdout"
  ]  # fmt: skip


def test_the_report_says_that_a_source_is_the_runs_own(tmp_path):
  arguments = ["--variant", "scratch", "--workdir", str(tmp_path), "--report_only"]
  assert run_lib.main(["cross_dataset", "--source", "synth_pedes", *arguments]) == 0
  (text,) = (path.read_text() for path in tmp_path.rglob("cross_dataset.md"))
  assert "`--source synth_pedes` is the runs' own dataset, synth_pedes:scratch." in text


def test_the_report_names_the_variant(tmp_path):
  chosen = options(tmp_path)
  run = runs.make_run(chosen, SETTING, 0)
  fabricated.finish(run, last=20.0)
  (run.folder / "measures").mkdir()
  path = run.folder / "measures" / "cross_dataset-synth_pedes-scratch-last.json"
  path.write_text(json.dumps({"scores": fabricated.scores(15.0)}))
  arguments = ["--workdir", str(tmp_path), "--protocol", "last", "--report_only"]
  assert run_lib.main(["cross_dataset", "--source", "synth_pedes:scratch", *arguments]) == 0
  (text,) = (path.read_text() for path in tmp_path.rglob("cross_dataset.md"))
  assert "| synth_pedes → synth_pedes | R@1 | – | 20.00 |  | 1 |" in text
  assert "| synth_pedes → synth_pedes:scratch | R@1 | – | 15.00 |  | 1 |" in text
