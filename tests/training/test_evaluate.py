"""Pretrained weights are scored without training, in a directory that stays free for a run."""

import collections
import io
import json
import types

import pytest

from dgia_jax import distributed, files
from dgia_jax.errors import UserError
from dgia_jax.reporting.console import Console
from dgia_jax.training import (
  checkpoint,
  evaluate,
  retrieval_metrics,
  test_time,
  train,
)
from dgia_jax.training import setup as setup_lib
from tests.helpers import tiny_run
from tests.helpers.stand_in import stand_in

pytestmark = pytest.mark.integration


def test_weights_of_a_run_score_as_the_run_did(tmp_path):
  splits, console = tiny_run.splits(), Console(file=io.StringIO())
  reranked = {"eval__test_time__rerank_candidates": 9}
  config = tiny_run.config(num_epochs=1, mesh__data=-1, **reranked)
  trained = train.train(config, tmp_path / "run", console, splits)
  config.pretrained = str(tmp_path / "run")
  output = io.StringIO()
  scored = evaluate.evaluate(config, tmp_path / "scored", Console(file=output), splits)
  for name in ("t2i", "i2t", "test_time"):
    assert scored["last"][name] == trained["last"][name] == trained["best"][name]
  assert list(scored["last"]["test_time"]) == ["reranked"]
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


def test_a_run_is_scored_on_other_devices_than_it_was_trained_on(tmp_path):
  """Its mesh does not fit them, nor does its batch divide over them."""
  splits, output = tiny_run.splits(), io.StringIO()
  config = tiny_run.config(num_epochs=1, batch_size=6, mesh__data=2, mesh__tensor=4)
  trained = train.train(config, tmp_path, Console(file=output), splits)
  config.mesh.update(data=-1, fsdp=3, tensor=1)
  with pytest.raises(UserError, match="mesh.fsdp=3 mesh.tensor=1 does not fit 8 device"):
    evaluate.evaluate(config, tmp_path, Console(file=output), splits)  # asked for by the user
  files.write_json(tmp_path / "config.json", config.to_dict())
  scored = evaluate.evaluate(config, tmp_path, Console(file=output), splits)
  printed = " ".join(output.getvalue().split())
  assert "mesh.fsdp=3 mesh.tensor=1 of the run's training does not fit 8 device(s)" in printed
  assert "evaluating with mesh.data=8 mesh.fsdp=1 mesh.tensor=1" in printed
  for direction in ("t2i", "i2t"):
    assert scored["last"][direction] == pytest.approx(trained["last"][direction])


def test_every_process_restores_the_checkpoints_that_the_first_one_chose(monkeypatch):
  """A disk that the processes share may show a process an old listing."""
  checkpoints, steps = stand_in(checkpoint.Checkpoints), []
  checkpoints.latest.return_value, checkpoints.best.return_value = 10, None  # as seen here

  def restore(step, *arguments):
    steps.append(step)
    return types.SimpleNamespace(params={}, ema=None), collections.defaultdict(dict)

  decisions = iter([15, 5])
  monkeypatch.setattr(distributed, "decided_by_first_process", lambda decide: next(decisions))
  monkeypatch.setattr(checkpoint, "digest", lambda *arguments: "")
  monkeypatch.setattr(evaluate, "_facts", lambda *arguments: {})
  monkeypatch.setattr(evaluate, "_write", lambda *arguments: None)
  checkpoints.restore = restore
  evaluator = stand_in(evaluate.Evaluator, **{
    "score.return_value": ({}, None), "score_corrected.return_value": {},
  })  # fmt: skip
  setup = stand_in(setup_lib.TrainingSetup, config=tiny_run.config())
  console = stand_in(Console)
  results = evaluate.report(setup, checkpoints, console, evaluator)
  assert steps == [15, 5] == [results["last"]["step"], results["best"]["step"]]


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


def test_corrections_at_test_time_stand_beside_plain_scores(shipped_mini, tmp_path):
  splits, console = tiny_run.splits(), Console(file=io.StringIO())
  weights = dict(pretrained=str(shipped_mini), model__name="tiny", tokenizer__context_length=16)
  weights |= dict(mesh__data=-1)
  plain = evaluate.evaluate(tiny_run.config(**weights), tmp_path, console, splits)
  asked = dict(smooth_neighbours=2, hubness_weight=0.5, rerank_candidates=9, rerank_neighbours=3)
  fields = {f"eval__test_time__{name}": value for name, value in asked.items()}
  config, output = tiny_run.config(**weights, **fields), io.StringIO()
  results = evaluate.evaluate(config, tmp_path, Console(file=output), splits)
  assert json.loads((tmp_path / "results.json").read_text()) == results
  corrected = results["last"].pop("test_time")
  assert results["last"] == plain["last"]
  assert output.getvalue().count("re-ranked") == output.getvalue().count("all of these") == 1

  # On one device, from features that are embedded again.
  setup = setup_lib.create(config, tmp_path, splits)
  params = setup_lib.initial_state(setup, console.print).params
  evaluator = evaluate.Evaluator(setup)
  images_MxD, texts_NxD = evaluator.embed(params, splits["test"])
  _, references_NxD = evaluator.embed(params, splits["train"])
  parts = test_time.Correction(**asked).parts()
  assert list(corrected) == list(parts) == ["smoothed", "hubs_corrected", "reranked", "together"]
  ids = splits["test"].person_of_pair_N, splits["test"].person_of_image_M
  for name, part in parts.items():
    gallery_MxD, adjust = part.prepare(images_MxD, references_NxD)
    expected = retrieval_metrics.retrieval_metrics_from_features(
      texts_NxD, gallery_MxD, *ids, adjust=adjust, block=5
    )
    assert corrected[name] == pytest.approx(expected), name
  assert corrected["together"] != corrected["reranked"] != plain["last"]["t2i"]


def test_a_single_correction_is_scored_alone():
  correction = test_time.Correction(rerank_candidates=5)
  assert correction.parts() == {"reranked": correction}
  assert test_time.Correction(rerank_neighbours=4).parts() == {}
  defaults = test_time.Correction(**tiny_run.config().eval.test_time)
  assert defaults == test_time.Correction()  # of the config and of the module
