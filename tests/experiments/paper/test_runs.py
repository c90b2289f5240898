"""Which run a setting is, and what is read back from its folder."""

import json
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from dgia_jax import config as config_lib
from dgia_jax import run_flags
from dgia_jax.errors import UserError
from experiments.paper import runs, tables
from tests.helpers import fabricated
from tests.helpers.paths import ROOT

EXPERIMENTS = tables.EXPERIMENTS


def options(workdir="runs", dataset="synth_pedes", **fields):
  chosen = tables.DATASETS[dataset]
  return runs.Options(chosen, pathlib.Path(workdir), **{"schedule": chosen.schedule, **fields})


def folders(name, **fields):
  return [runs.make_run(options(**fields), s, 0).folder for s in EXPERIMENTS[name].settings]


@pytest.mark.parametrize("dataset", tables.DATASETS)
def test_settings_resolve_to_checked_configs_that_differ(dataset):
  for experiment in EXPERIMENTS.values():
    made = [runs.make_run(options(dataset=dataset), s, 3).folder for s in experiment.settings]
    assert len(set(made)) == len(made), experiment.name


def test_a_setting_changes_the_fields_it_names():
  settings = {setting.label: setting for setting in EXPERIMENTS["modules"].settings}
  config = runs.resolve(options(), settings["B+GSRC-FR"], 5)
  assert dict(config.loss.weights) == {
    "itc": 1.0, "local": 0.0, "global": 1.0, "consistency": 0.0,
  }  # fmt: skip
  assert config.seed == 5
  assert config.num_epochs == tables.WARM.fields["num_epochs"]


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


def test_folders_tell_dataset_setting_and_seed_apart():
  setting = EXPERIMENTS["main"].settings[0]
  found = {
    runs.make_run(options(dataset=dataset, overrides=overrides), setting, seed).folder
    for dataset in tables.DATASETS
    for overrides in ({}, {"batch_size": 32})
    for seed in (0, 1)
  }
  assert len(found) == 4 * len(tables.DATASETS)
  assert all("DGIA." in path.name for path in found)


def test_all_settings_of_a_seed_start_from_one_run_wherever_it_lies():
  made = [runs.make_run(options(), s, 4) for s in EXPERIMENTS["reference"].settings]
  (start,) = {run.start.folder for run in made}
  assert all(run.config.pretrained == str(start) for run in made)
  assert made[0].start.config.loss.weights["global"] == 0 and not made[0].start.config.pretrained
  assert made[0].start.start is None
  other = runs.make_run(options("elsewhere"), EXPERIMENTS["reference"].settings[0], 4)
  assert other.folder.name == made[0].folder.name
  cold = runs.make_run(options(schedule=""), EXPERIMENTS["reference"].settings[0], 4)
  assert cold.start is None and not cold.config.pretrained


def test_a_setting_of_all_runs_reaches_the_start():
  chosen = options(overrides={"batch_size": 32, "num_epochs": 2})
  made = runs.make_run(chosen, EXPERIMENTS["main"].settings[0], 0)
  assert made.config.batch_size == made.start.config.batch_size == 32
  assert (made.config.num_epochs, made.start.config.num_epochs) == (2, 10)


def test_where_a_run_runs_is_no_part_of_it():
  assert folders("modules") == folders("modules", overrides={"mesh.fsdp": 2, "log_every_steps": 7})


def test_a_run_made_under_another_name_is_found_again(tmp_path):
  run = runs.make_run(options(tmp_path), EXPERIMENTS["main"].settings[0], 0)
  _, key, seed = run.folder.name.rsplit(".", 2)
  other = run.folder.with_name(f"mask-0.5.{key}.{seed}")
  other.mkdir(parents=True)
  assert runs.make_run(options(tmp_path), EXPERIMENTS["main"].settings[0], 0).folder == other


def test_commands_parse_to_the_declared_config(monkeypatch):
  """The flags of the training command, parsed as it parses them, give the same config."""
  monkeypatch.chdir(ROOT)
  chosen = options(overrides={"dataset.image_size": (96, 32), "dataset.data_dir": "a b"})
  for setting in (*EXPERIMENTS["global"].settings, *EXPERIMENTS["mask_ratio"].settings[:2]):
    run = runs.make_run(chosen, setting, 4)
    assert run.arguments[:2] == ("-m", "dgia_jax.main")
    command = ["main", *map(run_flags.with_keywords_quoted, run.arguments[2:])]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    monkeypatch.setattr("sys.argv", command)  # config_flags looks for its overrides there
    values(command)
    assert values.config.to_dict() == run.config.to_dict()
    assert values.workdir == str(run.folder)


@pytest.mark.parametrize(
  "texts, message",
  [
    (["num_epochs"], "give FIELD=VALUE"),
    (["seed=3"], "--seeds"),
    (["loss.weights={'itc': 1.0}"], "single fields"),
  ],
)
def test_overrides_that_make_no_sense(texts, message):
  with pytest.raises(UserError, match=message):
    runs.parse_overrides(texts)


def test_overrides_are_python_values_or_text():
  found = runs.parse_overrides(["a.b=3", "config.c=(1, 2)", "d=[1]", "e=/x=y", "f=True"])
  assert found == {"a.b": 3, "c": (1, 2), "d": (1,), "e": "/x=y", "f": True}


@pytest.mark.parametrize("field, value", [("num_epoch", 3), ("batch_size", "many"), ("a.b", 1)])
def test_unknown_fields_and_wrong_types_are_one_line(field, value):
  with pytest.raises(UserError, match=f"--set {field}=") as caught:
    runs.resolve(options(overrides={field: value}), EXPERIMENTS["main"].settings[0], 0)
  assert "\n" not in str(caught.value)


@pytest.fixture
def run(tmp_path):
  return runs.make_run(options(tmp_path), EXPERIMENTS["main"].settings[0], 0)


def test_results_are_there_once_the_last_epoch_is_done(run):
  assert runs.results(run) is None
  fabricated.finish(run, last=20.0)
  assert runs.results(run)["last"]["t2i"]["R1"] == 20.0
  path = run.folder / "results.json"
  content = json.loads(path.read_text())
  content["last"]["epoch"] -= 1  # evaluated on the way
  path.write_text(json.dumps(content))
  assert runs.results(run) is None


def test_damaged_folders_are_told_in_one_line(run):
  fabricated.finish(run, last=20.0)
  (run.folder / "results.json").write_text("{")
  with pytest.raises(UserError, match=r"results.json cannot be read"):
    runs.results(run)
  (run.folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n{"st')
  with pytest.raises(UserError, match="line 2 is damaged"):
    runs.metrics(run)
  (run.folder / "metrics.jsonl").write_text('{"step": 1}\n{"st')
  assert runs.metrics(run) == [{"step": 1}]


def test_a_folder_of_another_config_is_refused(run):
  fabricated.finish(run, last=20.0)
  path = run.folder / "config.json"
  stored = json.loads(path.read_text())
  del stored["bank"]["gated"]  # a field that was added after the run, now at its default
  path.write_text(json.dumps(stored))
  assert runs.results(run) is not None
  stored["bank"]["update_rate"] = 0.5
  path.write_text(json.dumps(stored))
  with pytest.raises(UserError, match=r"another config \(differing: bank.update_rate\)"):
    runs.results(run)


def test_scores_of_each_protocol(run):
  fabricated.finish(run, last=20.0, val=21.0, test=22.0)
  found = runs.results(run)
  scores = lambda protocol: runs.scores_of(found, options(protocol=protocol), run.folder)["R1"]
  assert [scores(protocol) for protocol in tables.PROTOCOLS] == [20.0, 21.0, 22.0]
  del found["best_by_split"]["val"]
  with pytest.raises(UserError, match="--protocol val"):
    scores("val")
  found["last_by_split"] = {"val": {"t2i": fabricated.scores(5.0)}}
  assert runs.scores_of(found, options(split="val"), run.folder)["R1"] == 5.0


def test_only_the_selected_checkpoint_is_kept(run):
  assert run.config.eval.select_on == "val"
  assert runs.checkpoint_choice(run, "last") == "last"
  assert runs.checkpoint_choice(run, "val") == "best"
  with pytest.raises(UserError, match="eval.select_on=test"):
    runs.checkpoint_choice(run, "test_best")


def test_a_later_field_leaves_folders_where_they_are(monkeypatch):
  """A field that is added with a default changes no digest."""
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
