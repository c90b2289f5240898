"""The training command of the smallest run of the true path."""

import sys

# The true path at its smallest: 30 drawn images, 3 epochs of 4 steps.
TINY = [
  "--config=configs/synth_pedes.py:small",
  "--config.dataset.options.train_people=5",
  "--config.dataset.options.val_people=3",
  "--config.dataset.options.test_people=3",
  "--config.batch_size=8",
  "--config.eval.batch_size=8",
  "--config.checkpoint.every_steps=1",
  "--config.log_every_steps=1",
]
STEPS = 12


def command(*arguments):
  return [sys.executable, "-m", "dgia_jax.main", *map(str, arguments)]
