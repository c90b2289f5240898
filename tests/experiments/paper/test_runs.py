"""The run of a setting, and what is read from its folder."""

import json
import pathlib
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from dgia_jax import config as config_lib
from dgia_jax import run_flags
from dgia_jax.errors import UserError
from experiments.paper import collect, runs, tables
from tests.helpers import fabricated, fake_datasets
from tests.helpers.paths import ROOT

EXPERIMENTS = tables.EXPERIMENTS
WARM = {"variant": "scratch", "schedule": "warm"}  # each seed trains its own start first


def options(
  workdir: pathlib.Path | str = "runs", dataset: str = "synth_pedes", **fields: Any
) -> runs.Options:
  declared = tables.DATASETS[dataset]
  return runs.Options(declared, pathlib.Path(workdir), **{"schedule": declared.schedule, **fields})


def folders(name: str, **fields: Any) -> list[pathlib.Path]:
  return [runs.make_run(options(**fields), s, 0).folder for s in EXPERIMENTS[name].settings]


@pytest.mark.parametrize(
  "dataset, variant",
  [*((name, "") for name in tables.DATASETS), ("cuhk_pedes", "strong"), ("synth_pedes", "plus"),
   ("custom", "plus"), ("custom", "mini_plus"), ("custom", "tiny_plus")],
)  # fmt: skip
def test_settings_resolve_to_checked_configs_that_differ(dataset, variant):
  chosen = options(dataset=dataset, variant=variant)
  for experiment in EXPERIMENTS.values():
    planned = collect.plan(experiment, chosen)
    paths = [run.folder for (run,) in planned.runs.values()]
    assert len(set(paths)) == len(paths), experiment.name
    if not variant:
      assert not planned.conflicts
    for label, (run,) in planned.runs.items():
      weights, relations = run.config.loss.weights, run.config.local_association.modality
      if label in ("B", "baseline", "augmented", "B+LRC", "BFE", "oracle_captions"):
        assert run.config.caption_exchange.prob == weights["global"] == 0, label
      if "+LRC" in label or "BFE" in label or label.startswith("local-x"):
        assert weights["local"] > 0 and relations != "none", label


def test_settings_that_a_variant_makes_one_run_are_one_row():
  planned = collect.plan(EXPERIMENTS["ideas"], options(variant="plus"))
  assert planned.not_applicable == (
    "not applicable with these options: no-local, exchange, exchange+no-local, patch-drop,"
    " new-words, plus, initial, plus+initial, new-words+initial (the same run as DGIA);"
    " B+new-words+initial (the same run as B+new-words);"
    " masked-clean (the same run as exchange+no-local+masked-clean)"
  )
  assert [len(collect.plan(EXPERIMENTS[name], options(variant="plus")).runs)
          for name in ("modules", "local", "reference")] == [5, 4, 5]  # fmt: skip


def test_an_override_changes_what_a_label_needs():
  labels = ("B+LRC", "B+LRC+GSRC-FR+IASC-CL")
  chosen = options(variant="plus", overrides={"loss.weights.local": 0.5})
  planned = collect.plan(EXPERIMENTS["modules"], chosen)
  assert {planned.runs[label][0].config.loss.weights["local"] for label in labels} == {0.5}


def test_a_setting_changes_the_fields_it_names():
  settings = {setting.label: setting for setting in EXPERIMENTS["modules"].settings}
  config = runs.make_run(options(), settings["B+GSRC-FR"], 5).config
  assert dict(config.loss.weights) == {
    "itc": 1.0, "local": 0.0, "global": 1.0, "consistency": 0.0,
  }  # fmt: skip
  assert config.seed == 5 and config.pretrained == "mini"
  warm = runs.make_run(options(**WARM), settings["B+GSRC-FR"], 5).config
  assert warm.num_epochs == tables.WARM.fields["num_epochs"]


def test_the_same_config_is_the_same_run_in_every_table():
  main, modules, local = folders("main"), folders("modules"), folders("local")
  assert main[0] == modules[-1] == folders("relation_accuracy")[0] == folders("mask_ratio")[4]
  assert modules[:2] == [local[0], local[-1]]
  assert folders("global")[0] == modules[1] and folders("global")[-1] == modules[3]
  reference = folders("reference")
  assert (reference[0], reference[2]) == (modules[0], modules[-1])
  assert not set(reference[3:]) & set(modules), "an oracle is no method"
  distinct = {*modules, *local, *folders("global"), *folders("relation_accuracy")}
  assert len(distinct) == 9


def test_folders_differ_by_dataset_setting_and_seed():
  setting = EXPERIMENTS["main"].settings[0]
  paths = {
    runs.make_run(options(dataset=dataset, overrides=overrides), setting, seed).folder
    for dataset in tables.DATASETS
    for overrides in ({}, {"batch_size": 32})
    for seed in (0, 1)
  }
  assert len(paths) == 4 * len(tables.DATASETS)
  assert all("DGIA." in path.name for path in paths)


def test_all_settings_of_a_seed_start_from_one_run_in_any_workdir():
  planned = [runs.make_run(options(**WARM), s, 4) for s in EXPERIMENTS["reference"].settings]
  (start,) = {run.start.folder for run in planned}
  assert all(run.config.pretrained == str(start) for run in planned)
  assert (
    planned[0].start.config.loss.weights["global"] == 0 and not planned[0].start.config.pretrained
  )
  assert planned[0].start.start is None
  other = runs.make_run(options("elsewhere", **WARM), EXPERIMENTS["reference"].settings[0], 4)
  assert other.folder.name == planned[0].folder.name
  cold = runs.make_run(options(variant="scratch"), EXPERIMENTS["reference"].settings[0], 4)
  assert cold.start is None and not cold.config.pretrained


def test_an_override_applies_to_the_start_too():
  overridden = options(overrides={"batch_size": 32, "num_epochs": 2}, **WARM)
  run = runs.make_run(overridden, EXPERIMENTS["main"].settings[0], 0)
  assert run.config.batch_size == run.start.config.batch_size == 32
  assert (run.config.num_epochs, run.start.config.num_epochs) == (2, 10)


def test_the_mesh_and_logging_do_not_change_the_folder():
  assert folders("modules") == folders("modules", overrides={"mesh.fsdp": 2, "log_every_steps": 7})


def test_a_run_stored_under_another_label_is_reused(tmp_path):
  run = runs.make_run(options(tmp_path), EXPERIMENTS["main"].settings[0], 0)
  _, key, seed = run.folder.name.rsplit(".", 2)
  other = run.folder.with_name(f"mask-0.5.{key}.{seed}")
  other.mkdir(parents=True)
  assert runs.make_run(options(tmp_path), EXPERIMENTS["main"].settings[0], 0).folder == other


def test_other_content_of_a_users_dataset_is_another_run(tmp_path):
  def folder(annotations, **fields):
    overrides = {"dataset.annotations": str(annotations)}
    chosen = options(tmp_path, "custom", variant="tiny", overrides=overrides, **fields)
    return runs.make_run(chosen, EXPERIMENTS["main"].settings[0], 0).folder

  first, second, copied = (tmp_path / name / "list.json" for name in ("a", "b", "c"))
  for path, entries in ((first, [1]), (second, [2]), (copied, [1])):
    fake_datasets.write_json(path, entries)
  assert folder(first) != folder(second) and folder(first) == folder(copied)
  warm = folder(first, schedule="warm")
  assert warm != folder(second, schedule="warm") and warm == folder(copied, schedule="warm")
  before = folder(first)
  fake_datasets.write_json(first, [1, 2])
  assert folder(first) != before
  with pytest.raises(UserError, match="custom: no file .*missing.json"):
    folder(tmp_path / "missing.json")
  overrides = {"dataset.annotations": str(first)}  # the benchmarks' content is that of their names
  chosen = options(tmp_path, "cuhk_pedes", overrides=overrides)
  plain = options(tmp_path, "cuhk_pedes")
  setting = EXPERIMENTS["main"].settings[0]
  assert runs.make_run(chosen, setting, 0).folder == runs.make_run(plain, setting, 0).folder


@pytest.mark.parametrize(
  "dataset, key",
  [
    ("synth_pedes", "19ae8495"), ("cuhk_pedes", "9856916c"), ("icfg_pedes", "852f2ff6"),
    ("rstp_reid", "09694326"),
  ],
)  # fmt: skip
def test_keys_of_finished_runs_stay(dataset, key):
  run = runs.make_run(options(dataset=dataset), EXPERIMENTS["main"].settings[0], 0)
  assert run.folder.name == f"DGIA.{key}.seed0"


def test_stored_runs_are_found_under_their_names(tmp_path):
  stored = ROOT / "experiments" / "results" / "runs" / "synth_pedes"
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "synth_pedes").symlink_to(stored)
  for setting in EXPERIMENTS["modules"].settings:
    run = runs.make_run(options(tmp_path), setting, 0)
    assert runs.results(run) is not None, setting.label


def test_commands_parse_to_the_declared_config(monkeypatch):
  """The training command parses its own flags to the same config."""
  monkeypatch.chdir(ROOT)
  spaced = options(overrides={"dataset.image_size": (96, 32), "dataset.data_dir": "a b"})
  for setting in (*EXPERIMENTS["global"].settings, *EXPERIMENTS["mask_ratio"].settings[:2]):
    run = runs.make_run(spaced, setting, 4)
    assert run.arguments[:2] == ("-m", "dgia_jax.main")
    command = ["main", *map(run_flags.with_keywords_quoted, run.arguments[2:])]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    monkeypatch.setattr("sys.argv", command)  # config_flags reads overrides from here
    values(command)
    assert values.config.to_dict() == run.config.to_dict()
    assert values.workdir == str(run.folder)


@pytest.mark.parametrize(
  "texts, message",
  [
    (["num_epochs"], "give FIELD=VALUE"),
    (["seed=3"], "--seeds"),
    (["loss.weights={'itc': 1.0}"], "single fields"),
    (["dataset.options.a=[{'b': 1}]"], "single fields"),
  ],
)
def test_invalid_overrides(texts, message):
  with pytest.raises(UserError, match=message):
    runs.parse_overrides(texts)


def test_overrides_are_python_values_or_text():
  texts = ["a.b=3", "config.c=(1, 2)", "d=[1]", "e=/x=y", "f=True", "g=[[3], 6]", "h={[1]: 2}"]
  assert runs.parse_overrides(texts) == {
    "a.b": 3, "c": (1, 2), "d": (1,), "e": "/x=y", "f": True, "g": ((3,), 6), "h": "{[1]: 2}",
  }  # fmt: skip


def test_a_list_inside_a_list_reaches_the_command(tmp_path):
  overrides = runs.parse_overrides(["dataset.options.attributes_per_caption=[[3], 6]"])
  run = runs.make_run(options(tmp_path, overrides=overrides), EXPERIMENTS["main"].settings[0], 0)
  assert "--config.dataset.options.attributes_per_caption=((3,), 6)" in run.arguments


@pytest.mark.parametrize("field, value", [("num_epoch", 3), ("batch_size", "many"), ("a.b", 1)])
def test_unknown_fields_and_wrong_types_are_one_line(field, value):
  with pytest.raises(UserError, match=f"--set {field}=") as caught:
    runs.make_run(options(overrides={field: value}), EXPERIMENTS["main"].settings[0], 0)
  assert "\n" not in str(caught.value)


@pytest.fixture
def run(tmp_path):
  return runs.make_run(options(tmp_path), EXPERIMENTS["main"].settings[0], 0)


def test_a_run_is_finished_after_its_last_epoch(run):
  assert runs.results(run) is None
  fabricated.finish(run, last=20.0)
  assert runs.results(run)["last"]["t2i"]["R1"] == 20.0
  path = run.folder / "results.json"
  content = json.loads(path.read_text())
  content["last"]["epoch"] -= 1  # an intermediate evaluation
  path.write_text(json.dumps(content))
  assert runs.results(run) is None


def test_damaged_files_give_one_line(run):
  fabricated.finish(run, last=20.0)
  (run.folder / "results.json").write_text("{")
  with pytest.raises(UserError, match=r"results.json cannot be read"):
    runs.results(run)
  (run.folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n{"st')
  with pytest.raises(UserError, match="line 2 is damaged"):
    runs.metrics(run)
  (run.folder / "metrics.jsonl").write_text('{"step": 1}\n{"st')
  assert runs.metrics(run) == [{"step": 1}]


def test_an_evaluation_before_the_end_of_a_training_does_not_finish_it(run):
  """It may be of the last epoch, whose checkpoint is saved before it is evaluated."""
  fabricated.finish(run, last=20.0)
  path = run.folder / "results.json"
  content = json.loads(path.read_text())
  del content["last_by_split"]
  path.write_text(json.dumps(content))
  assert runs.results(run) is None


def test_a_folder_of_another_config_is_refused(run):
  fabricated.finish(run, last=20.0)
  path = run.folder / "config.json"
  stored = json.loads(path.read_text())
  del stored["bank"]["gate"]  # a field that was added after the run, now at its default
  path.write_text(json.dumps(stored))
  assert runs.results(run) is not None
  stored["bank"]["update_rate"] = 0.5
  path.write_text(json.dumps(stored))
  with pytest.raises(UserError, match=r"another config \(differing: bank.update_rate\)"):
    runs.results(run)


def test_scores_of_each_protocol(run):
  fabricated.finish(run, last=20.0, val=21.0, test=22.0)
  results = runs.results(run)
  scores = lambda protocol: runs.scores_of(results, options(protocol=protocol), run.folder)["R1"]
  assert [scores(protocol) for protocol in tables.PROTOCOLS] == [20.0, 21.0, 22.0]
  del results["best_by_split"]["val"]
  with pytest.raises(UserError, match="--protocol val"):
    scores("val")
  results["last_by_split"] = {"val": {"t2i": fabricated.scores(5.0)}}
  assert runs.scores_of(results, options(split="val"), run.folder)["R1"] == 5.0


def test_the_checkpoint_of_each_protocol(run):
  assert run.config.eval.select_on == "val"
  assert runs.checkpoint_choice(run, "last") == "last"
  assert runs.checkpoint_choice(run, "val") == "best"
  with pytest.raises(UserError, match="--protocol val or last, or .*eval.select_on=test"):
    runs.checkpoint_choice(run, "test_best")


@pytest.mark.parametrize(
  "dataset, fields, protocol",
  [
    ("cuhk_pedes", {}, "test_best"),
    ("icfg_pedes", {}, "test_best"),
    ("rstp_reid", {"variant": "paper"}, "test_best"),
    ("icfg_pedes", {"variant": "holdout"}, "val"),
    ("cuhk_pedes", {"variant": "strong"}, "val"),
    ("cuhk_pedes", {"overrides": {"eval.select_on": "val"}}, "val"),
    ("synth_pedes", {}, "val"),
    ("custom", {"variant": "tiny", "schedule": "warm"}, "val"),
  ],
)
def test_the_default_protocol_is_that_of_the_config(dataset, fields, protocol):
  chosen = options(dataset=dataset, **fields)
  assert runs.default_protocol(chosen) == protocol
  run = runs.make_run(chosen, EXPERIMENTS["main"].settings[0], 0)
  assert runs.checkpoint_choice(run, protocol) == "best"


def test_a_new_field_does_not_rename_folders(monkeypatch):
  """A new field with a default leaves all digests unchanged."""
  before = folders("modules")
  original = config_lib.base

  def with_another_field():
    config = original()
    with config.unlocked():
      config.loss.added_later = 0.0
    return config

  monkeypatch.setattr(config_lib, "base", with_another_field)
  runs._first_labels.cache_clear()
  assert folders("modules") == before
  runs._first_labels.cache_clear()
