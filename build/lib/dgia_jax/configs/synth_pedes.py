"""The embedded default: tiny towers from scratch on procedural pedestrians.

  python -m dgia_jax.main --config synth_pedes --workdir runs/demo
  python -m dgia_jax.main --config synth_pedes:small --workdir runs/small

Time and score on two CPU cores: see README.md. `:small` is the same path on a small dataset in
about a minute; its scores mean nothing. `:plus` mines fewer wrong relations.
"""

from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax.errors import UserError


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant: "" (default), "small" or "plus"."""
  config = config_lib.from_scratch(config_lib.base())
  config.dataset.name = "synth_pedes"
  config.dataset.options = dict(train_people=2700)
  config.dataset.image_size = (64, 32)
  config.batch_size = 64
  config.num_epochs = 10
  # Mined from the features of early epochs, relations are wrong and cost 2 to 7 R@1.
  config.local_association.start_epoch = 9
  config.global_association.start_epoch = 9
  if variant == "small":
    config.dataset.options = dict(train_people=400, val_people=40, test_people=40)
    config.num_epochs = 3
    config.local_association.start_epoch = 3
    config.global_association.start_epoch = 3
    config.log_every_steps = 10
  elif variant == "plus":
    config_lib.beyond_paper(config)
  elif variant:
    raise UserError(f"configs/synth_pedes.py has no variant {variant!r}: use none, :small or :plus")
  return config
