"""The embedded default: tiny towers from scratch on procedural pedestrians.

  python -m dgia_jax.main --config configs/synth_pedes.py --workdir runs/synth_pedes
  python -m dgia_jax.main --config configs/synth_pedes.py:small --workdir runs/small   (one minute)
"""

from dgia_jax.config import base


def get_config(variant=""):
  """The config of a variant: "" (default) or "small"."""
  config = base()
  config.dataset.name = "synth_pedes"
  config.dataset.image_size = (64, 32)
  config.dataset.workers = 0
  config.tokenizer.name = ""
  config.tokenizer.context_length = 32
  config.tokenizer.vocab_size = 1024
  config.model.name = "tiny"
  config.model.dtype = "float32"
  config.model.remat = True  # faster on a CPU, where memory traffic is what a small model waits for
  config.batch_size = 128
  config.num_epochs = 6
  config.loss.temperature = 0.05
  config.local_association.start_epoch = 3
  config.global_association.start_epoch = 4
  config.augment.padding = 4
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_epochs = 1
  config.optimizer.rate_per = "step"
  config.optimizer.epsilon = 1e-8
  config.optimizer.weight_decay = 0.05
  config.optimizer.decoupled = True
  config.optimizer.bias_rate = 1.0
  if variant == "small":
    config.dataset.options = dict(train_people=600, val_people=60, test_people=60)
    config.num_epochs = 3
    config.local_association.start_epoch = 2
    config.global_association.start_epoch = 2
    config.log_every_steps = 10
  elif variant:
    raise ValueError(f"configs/synth_pedes.py has no variant {variant!r}: use none or :small")
  return config
