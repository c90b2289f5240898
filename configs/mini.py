"""Pretraining of `mini`: contrastive, on synthetic people that share nothing with `synth_pedes`.

  python -m dgia_jax.main --config mini --workdir runs/mini

It takes a minute on one GPU. The seed of people, cameras and annotators differs from that of the
built-in dataset, as do the difficulty and the variety of clothes.
"""

from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import recipes

WORLD = dict(
  train_people=10_000,
  val_people=200,
  test_people=200,
  images_per_person=4,
  seed=11,
  attributes_per_caption=(5, 8),
  vague=0.08,
  wrong=0.03,
  annotators=60,
  camera=0.2,
  occlusion=0.05,
  variety=1.8,
)


def get_config(variant: str = "") -> ConfigDict:
  """The config of the pretraining, which has no variants."""
  config = recipes.from_scratch(config_lib.base())
  config.dataset.name = "synth_pedes"
  config.dataset.options = WORLD
  config.model.name = "mini"
  config.batch_size = 256
  config.num_epochs = 16
  config.eval_every_epochs = 4
  config.loss.temperature = 0.07
  config.loss.learnable_temperature = True
  config.loss.weights.update({"local": 0.0, "global": 0.0, "consistency": 0.0})
  config.optimizer.learning_rate = 1e-3
  config.optimizer.clip_norm = 1.0
  config.eval.contact_sheet = False
  return recipes.vary(config, variant, {}, "mini")
