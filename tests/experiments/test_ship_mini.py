"""A pretraining run becomes the shipped model, with a card that says how and how good."""

import json
import shutil

from configs import mini, synth_pedes
from dgia_jax import files
from dgia_jax.models.pretrained import shipped
from experiments import ship_mini


def test_the_command_names_what_differs_from_the_config():
  made = mini.get_config()
  plain = "python -m dgia_jax.main --config mini --workdir runs/mini"
  assert ship_mini.command(made) == plain
  made.batch_size, made.seed, made.dataset.options.train_people = 64, 3, 9
  assert ship_mini.command(made) == (
    f"{plain} --config.batch_size=64 --config.dataset.options.train_people=9 --config.seed=3"
  )


def test_a_run_is_shipped_with_its_zero_shot_scores(known_run, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  config = synth_pedes.get_config("scratch")
  config.dataset.options = dict(train_people=3, val_people=2, test_people=4)
  monkeypatch.setattr(synth_pedes, "get_config", lambda variant: config)
  run = tmp_path / "run"
  shutil.copytree(known_run, run)
  made = json.loads((run / "config.json").read_text())
  made["dataset"]["options"] = mini.WORLD  # the command names what differs from them
  files.write_json(run / "config.json", made)
  files.write_json(run / "results.json", {"device": "1 x a chip"})
  assert ship_mini.main(["--run", str(run)]) == 0
  assert "not used: logit_scale" in capsys.readouterr().out
  folder = tmp_path / "shipped" / "mini"
  card = (folder / "README.md").read_text()
  assert "\n\n## How it was made\n" in card and "pretrained on 1 x a chip with" in card
  assert "which ended at\n0.0500." in card
  facts = "(24 captions, 24 images; `test_people=4, train_people=3, val_people=2`):"
  assert f"\n`synth_pedes:scratch` {facts}\n" in card and f"\n`synth_pedes` {facts}\n" in card
  rows = [line for line in card.splitlines() if line.startswith("| text to image")]
  assert len(rows) >= 2
  for row in rows[:2]:
    numbers = [float(cell) for cell in row.split("|")[2:-1]]
    assert len(numbers) == 6 and 0 < numbers[0] <= numbers[1] <= 100
  assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
