"""The built-in dataset: `mini`, a small pretrained model, fine-tuned on procedural pedestrians.

  python -m dgia_jax.main --config synth_pedes --workdir runs/demo
  python -m dgia_jax.main --config synth_pedes:small --workdir runs/small

As the paper does with CLIP, it starts from weights that have never seen these people. Time and
score on two CPU cores: see README.md.

- `:plus` exchanges the captions of mined neighbours, mines no local relations, gives new words
  tokens of their own, reads half of the distorted image, and averages the initial and the trained
  weights (docs/findings.md).
- `:scratch` trains tiny towers from random weights.
- `:small` does so on a small dataset in about a minute; its scores mean nothing.
"""

from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import recipes


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant: "" (default), "plus", "scratch" or "small"."""
  config = recipes.from_mini(config_lib.base())
  config.dataset.name = "synth_pedes"
  config.dataset.options = dict(
    train_people=400,
    test_people=1000,
    attributes_per_caption=(5, 8),
    annotators=40,
    rare_words=0.6,  # `mini` has never read them
  )
  config.optimizer.weight_decay = 2.0  # chosen on val: with few people the model overfits
  config.eval_every_epochs = 2
  variants = {
    "plus": recipes.plus,
    "scratch": lambda _: _from_scratch(is_small=False),
    "small": lambda _: _from_scratch(is_small=True),
  }
  return recipes.vary(config, variant, variants, "synth_pedes")


def _from_scratch(is_small: bool) -> ConfigDict:
  """From random weights: relations start late, since early ones are mostly wrong."""
  config = recipes.from_scratch(config_lib.base())
  config.dataset.name = "synth_pedes"
  config.batch_size = 64
  config.dataset.options = dict(train_people=2700)
  config.num_epochs, start_epoch = 10, 9
  if is_small:
    config.dataset.options = dict(train_people=400, val_people=40, test_people=40)
    config.num_epochs, start_epoch = 3, 3
    config.log_every_steps = 10
  config.local_association.start_epoch = start_epoch
  config.global_association.start_epoch = start_epoch
  return config
