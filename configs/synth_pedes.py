"""The embedded default: tiny towers from scratch on procedural pedestrians.

  python -m dgia_jax.main --config configs/synth_pedes.py --workdir runs/demo
  python -m dgia_jax.main --config configs/synth_pedes.py:small --workdir runs/small

Time and score on two CPU cores: see README.md. `:small` is the same path on a small dataset in
about a minute; its scores mean nothing.
"""

from dgia_jax import config as config_lib
from dgia_jax.errors import UserError


def get_config(variant=""):
  """The config of a variant: "" (default) or "small"."""
  config = config_lib.from_scratch(config_lib.base())
  config.dataset.name = "synth_pedes"
  config.dataset.image_size = (64, 32)
  config.batch_size = 64
  config.num_epochs = 14
  # Mined from the features of early epochs, relations are wrong and cost 2 to 7 R@1.
  config.local_association.start_epoch = 13
  config.global_association.start_epoch = 13
  if variant == "small":
    config.dataset.options = dict(train_people=600, val_people=60, test_people=60)
    config.num_epochs = 3
    config.local_association.start_epoch = 3
    config.global_association.start_epoch = 3
    config.log_every_steps = 10
  elif variant:
    raise UserError(f"configs/synth_pedes.py has no variant {variant!r}: use none or :small")
  return config
