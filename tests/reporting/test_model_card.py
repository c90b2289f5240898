"""A model card states what the run's config and results state, and nothing else."""

import json

import huggingface_hub
import pytest

from dgia_jax import config, convert
from dgia_jax.reporting import model_card
from dgia_jax.training import workdir as workdir_lib

SCORES = {"R1": 30.0, "R5": 50.126, "R10": 60.0, "mAP": 33.0, "mINP": 20.0}
RESULTS = {
  "split": "test", "dataset": "cuhk_pedes", "queries": 6156, "gallery": 3074,
  "last": {"step": 9, "epoch": 3, "t2i": SCORES, "i2t": SCORES},
  "best": {"step": 7, "epoch": 2, "selected_on": "val", "t2i": SCORES, "i2t": SCORES},
}  # fmt: skip


def create(results=None, dataset="cuhk_pedes", pretrained=""):
  settings = config.base().to_dict() | {"pretrained": pretrained}
  settings["dataset"] = settings["dataset"] | {"name": dataset}
  return model_card.create(
    settings, step=7, num_parameters=1234567, feature_width=512, context_length=77, results=results
  )


def test_the_text_is_filled_in_from_config_and_results():
  card = str(create(RESULTS))
  assert "# vit_b_16 on cuhk_pedes" in card and "1,234,567 parameters" in card
  assert "384 x 128" in card and "epoch 2, chosen on val" in card and "6,156 captions" in card
  assert "| text to image | 30.00 | 50.13 | 60.00 | 33.00 | 20.00 |" in card
  assert "measured on `cuhk_pedes` only" in card and "{" not in card
  for duty in ("consent", "ethics board", "identify, track"):
    assert duty in card


@pytest.mark.parametrize("results", [None, RESULTS | {"best": {}, "last": {"step": 8}}])
def test_a_checkpoint_without_scores_is_called_not_evaluated(results):
  card = create(results)
  assert "not evaluated" in card.text and "measured on no dataset" in card.text
  assert "30.00" not in card.text and card.data.eval_results is None


def test_the_hub_can_read_the_metadata():
  data = huggingface_hub.ModelCard(str(create(RESULTS, pretrained="openai/clip"))).data
  assert data.base_model == "openai/clip" and data.datasets == "cuhk_pedes"
  assert data.library_name == "transformers" and data.license is None
  scores = {(result.task_type, result.metric_name): result for result in data.eval_results}
  assert len(scores) == 10
  result = scores["text-to-image-retrieval", "R@5"]
  assert (result.metric_value, result.dataset_split) == (50.13, "test")


def test_our_licence_covers_only_weights_without_other_sources():
  assert create(dataset="synth_pedes").data.license == "apache-2.0"
  assert create(dataset="synth_pedes", pretrained="openai/clip").data.license is None
  assert create(dataset="custom").data.license is None


def test_captions_of_a_program_are_not_attributed_to_people():
  drawn, written = (create(dataset=name).text for name in ("synth_pedes", "cuhk_pedes"))
  assert "composed their captions" in drawn and "come from the captions of" not in drawn
  assert "come from the captions of `cuhk_pedes`" in written and "program" not in written


def test_a_card_contains_no_paths_of_the_machine(tmp_path):
  def start(pretrained):
    card = create(pretrained=pretrained)
    assert card.data.base_model == (pretrained if pretrained == "openai/clip" else None)
    return next(line for line in card.text.splitlines() if "initial weights" in line)

  assert start("") == "| initial weights | random weights |"
  assert start("openai/clip") == "| initial weights | `openai/clip` |"
  for folder in (tmp_path / "warm", "/gone/since/warm", "runs/many/warm"):
    assert start(str(folder)) == "| initial weights | `warm` |"


def test_convert_writes_a_card(known_run, tmp_path):
  convert.convert(known_run, tmp_path / "out", "last")
  card = (tmp_path / "out" / convert.CARD).read_text()
  run = json.loads((known_run / workdir_lib.CONFIG).read_text())
  assert f"`{run['dataset']['name']}`" in card and "step 2" in card and "64 x 32" in card
  assert "16 tokens" in card and "64 numbers" in card and "not evaluated" in card
