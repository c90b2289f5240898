"""Pretrained weights are scored without training, in a directory that stays free for a run."""

import io
import json

import pytest

from dgia_jax.errors import UserError
from dgia_jax.reporting.console import Console
from dgia_jax.training import evaluate, train
from tests.helpers import tiny_run

pytestmark = pytest.mark.integration


def test_weights_of_a_run_score_as_the_run_did(tmp_path):
  splits, console = tiny_run.splits(), Console(file=io.StringIO())
  config = tiny_run.config(num_epochs=1, mesh__data=-1)
  trained = train.train(config, tmp_path / "run", console, splits)
  config.pretrained = str(tmp_path / "run")
  output = io.StringIO()
  scored = evaluate.evaluate(config, tmp_path / "scored", Console(file=output), splits)
  for direction in ("t2i", "i2t"):
    assert scored["last"][direction] == trained["best"][direction]
  assert scored["last"]["epoch"] == 0 and scored["pretrained"] == config.pretrained
  assert scored.keys() - {"pretrained"} <= trained.keys()
  assert json.loads((tmp_path / "scored" / "results.json").read_text()) == scored
  assert f"weights from {config.pretrained}; not used: none" in output.getvalue()
  (tmp_path / "scored" / "results.json").unlink()
  (tmp_path / "scored" / "results.json").mkdir()
  with pytest.raises(UserError, match="cannot be written"):
    evaluate.evaluate(config, tmp_path / "scored", console, splits)
  (tmp_path / "scored" / "results.json").rmdir()
  # The directory is free: training may start there, with another config, too.
  assert not (tmp_path / "scored" / "config.json").exists()
  again = train.train(config, tmp_path / "scored", console, splits)
  assert again["last"]["epoch"] == 1


def test_a_directory_without_a_run_needs_pretrained_weights(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    evaluate.evaluate(tiny_run.config(), tmp_path, Console(file=io.StringIO()), tiny_run.splits())


def test_a_run_starts_from_a_shipped_model_and_is_its_equal_before_training(shipped_mini, tmp_path):
  """Its weights, its vocabulary and, resized to other images, its positions."""
  splits, output = tiny_run.splits(), io.StringIO()
  own = dict(mesh__data=-1, tokenizer__context_length=16)
  fields = dict(pretrained="mini", model__name="tiny", **own)
  config = tiny_run.config(num_epochs=1, **fields)
  scored = evaluate.evaluate(config, tmp_path / "scored", Console(file=output), splits)
  assert scored["pretrained"] == "mini"
  assert "weights from mini; not used: logit_scale" in output.getvalue()
  by_path = tiny_run.config(num_epochs=1, **fields | {"pretrained": str(shipped_mini)})
  again = evaluate.evaluate(by_path, tmp_path / "again", Console(file=output), splits)
  assert again["digest"] == scored["digest"]
  trained = train.train(config, tmp_path / "run", Console(file=output), splits)
  assert trained["last"]["epoch"] == 1 and trained["digest"] != scored["digest"]
  with pytest.raises(UserError, match="mini is a model of the size tiny.*config.model.name=tiny$"):
    other = tiny_run.config(pretrained="mini", **own)
    train.train(other, tmp_path / "other", Console(file=output), splits)
