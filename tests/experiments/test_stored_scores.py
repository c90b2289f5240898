"""Scores of finished runs are stored once, and shown at the end of a run with the same config."""

import io
import json

import pytest

from configs import synth_pedes
from dgia_jax import config as config_lib
from dgia_jax import files
from dgia_jax.errors import UserError
from dgia_jax.reporting import stored_scores
from dgia_jax.reporting.console import Console
from dgia_jax.training import train
from dgia_jax.training import workdir as workdir_lib
from experiments import stored_scores as storing
from tests.helpers import fabricated, tiny_run


@pytest.fixture(autouse=True)
def stored_file(tmp_path, monkeypatch):
  """The file of stored scores, absent at first."""
  monkeypatch.setattr(stored_scores, "FILE", tmp_path / "stored_scores.json")
  return tmp_path / "stored_scores.json"


def write_run(folder, seed, score, **fields):
  """A finished run of the built-in dataset, with made-up scores; returns its folder."""
  config = synth_pedes.get_config()
  config.update_from_flattened_dict({"seed": seed, **fields})
  last = {"epoch": config.num_epochs, "step": 7, "t2i": fabricated.scores(score)}
  folder.mkdir()
  files.write_json(folder / "config.json", config.to_dict())
  files.write_json(folder / "results.json", {"last": last})
  return str(folder)


def store(method, baseline):
  return storing.main(["--method", *method, "--baseline", *baseline])


def test_stored_scores_belong_to_one_config_of_any_seed(tmp_path, stored_file, capsys):
  assert stored_scores.of_recipe(config_lib.changed_fields(synth_pedes.get_config())) == []
  method = [write_run(tmp_path / f"m{seed}", seed, 30.0 + seed) for seed in (0, 1)]
  baseline = [
    write_run(tmp_path / f"b{seed}", seed, 20.0 + seed, **storing.BASELINE) for seed in (0, 3)
  ]
  assert store(method, baseline) == 0 and str(stored_file) in capsys.readouterr().out
  config = synth_pedes.get_config()
  config.seed, config.log_every_steps = 77, 3
  alone, whole = stored_scores.of_recipe(config_lib.changed_fields(config))
  assert alone.seeds == [0, 3] and alone.scores["R1"] == [20.0, 23.0]
  assert alone.command == (
    "python -m dgia_jax.main --config synth_pedes --config.loss.weights.local=0"
    " --config.loss.weights.global=0 --config.loss.weights.consistency=0"
  )
  assert whole.scores == {"R1": [30.0, 31.0], "mAP": [60.0, 61.0]}
  assert whole.mean("R1") == 30.5 and whole.deviation("R1") == pytest.approx(0.5**0.5)
  config.batch_size += 1
  assert stored_scores.of_recipe(config_lib.changed_fields(config)) == []


def test_runs_of_another_setting_or_a_repeated_seed_are_refused(tmp_path, stored_file):
  runs = [write_run(tmp_path / f"m{seed}", seed, 30.0) for seed in (0, 1)]
  other = write_run(tmp_path / "other", 2, 30.0, **{"batch_size": 8})
  unfinished = write_run(tmp_path / "unfinished", 2, 30.0)
  results = json.loads((tmp_path / "unfinished" / "results.json").read_text())
  results["last"]["epoch"] -= 1
  files.write_json(tmp_path / "unfinished" / "results.json", results)
  oracle = write_run(tmp_path / "oracle", 2, 30.0)
  (tmp_path / "oracle" / workdir_lib.LABELS_FILE).write_text("oracle relations")
  for folders, words in (
    ([*runs, other], r"--method=.*other: .*differing: batch_size\)"),
    ([*runs, unfinished], "not of the last epoch"),
    ([*runs, oracle], r"--method=.*oracle: .*uses identity labels \(oracle relations\)"),
    ([runs[0], runs[0]], r"several seeds.*\[0, 0\]"),
    (runs[:1], r"several seeds.*\[0\]"),
  ):
    with pytest.raises(UserError, match=words):
      storing.setting("method", map(storing.pathlib.Path, folders), {}, "--method")
  assert store(runs, runs) == 2  # the baseline's weights of the losses are 0
  assert not stored_file.exists()


@pytest.mark.integration
def test_a_training_shows_them_at_its_end_also_when_repeated(stored_file, tmp_path):
  config, splits = tiny_run.config(num_epochs=1, mesh__data=-1), tiny_run.splits()
  numbers = {"R1": [1.0, 2.0], "mAP": [3.0, 4.0]}
  setting = {"title": "baseline", "command": "python x", "seeds": [0, 1], "scores": numbers}
  stored = {"recipe": config_lib.changed_fields(config), "settings": [setting]}
  files.write_json(stored_file, stored)
  for _ in range(2):
    out = io.StringIO()
    results = train.train(config, tmp_path / "run", Console(file=out), splits)
    assert "baseline, seeds 0, 1: python x" in out.getvalue()
    (row,) = (line.split() for line in out.getvalue().splitlines() if "this run" in line)
    assert row[2:] == [f"{results['last']['t2i'][metric]:.2f}" for metric in ("R1", "mAP")]
  files.write_json(stored_file, stored | {"recipe": {"batch_size": 3}})
  out = io.StringIO()
  train.train(config, tmp_path / "run", Console(file=out), splits)
  assert "baseline" not in out.getvalue()
