"""The stored scores belong to today's `synth_pedes` config and to the shipped weights."""

import json

from configs import synth_pedes
from dgia_jax import config as config_lib
from dgia_jax import files
from dgia_jax.models import pretrained
from dgia_jax.reporting import stored_scores


def test_they_are_of_the_default_config_and_of_the_shipped_weights():
  config = synth_pedes.get_config()
  alone, whole = stored_scores.of_recipe(config_lib.changed_fields(config))
  assert (alone.title, whole.title) == ("contrastive loss alone", "whole method")
  for setting in (alone, whole):
    assert len(setting.seeds) >= 3
    assert all(len(setting.scores[metric]) == len(setting.seeds) for metric in ("R1", "mAP"))
  weights = pretrained.local_copy(config.pretrained, "pretrained") / "model.safetensors"
  content = json.loads(stored_scores.FILE.read_text())
  assert content["pretrained_sha256"] == files.sha256(weights)
