"""CUHK-PEDES at global batch 4,096 and up, on a pod: the released recipe with a scaled rate.

  python -m dgia_jax.main --config pod --workdir runs/pod --config.dataset.data_dir=gs://BUCKET/data

The dataset is built beforehand (docs/scaling.md). `--config pod:16384` takes another global batch,
and its rate by the same rule. Memory: 4,096 pairs over 256 chips are 16 pairs per chip; where a
chip's share does not fit, add --config.gradient_accumulation=4 (one more forward pass, any batch).
For other data see configs/custom.py, which shows the settings that name it.

Expected: unknown. Neither this batch nor this rate has been run on real data: watch
`gradient_norm` (see `dgia_jax.method.optimizer.scaled_learning_rate`) and the first epochs' scores.
Epochs and warm-up stay as released, so steps become few: 17 per epoch at 4,096, 680 in all.
"""

from ml_collections import ConfigDict

from dgia_jax import recipes
from dgia_jax.errors import UserError
from dgia_jax.method import optimizer


def get_config(variant: str = "") -> ConfigDict:
  """The config for a global batch: "" (4,096) or a number of pairs, as in "8192"."""
  if variant and not (variant.isdecimal() and int(variant) > 0):
    raise UserError(
      f"configs/pod.py has no variant {variant!r}: give the pairs of the global batch, as in :8192"
    )
  config = recipes.benchmark("cuhk_pedes")
  released_batch, released_rate = config.batch_size, config.optimizer.learning_rate
  config.batch_size = int(variant or 4096)
  config.optimizer.learning_rate = optimizer.scaled_learning_rate(
    released_rate, config.batch_size, released_batch, rule="linear"
  )
  config.mesh.data = -1
  config.mesh.fsdp = 4  # parameters and Adam's averages, 1.8 GB in float32, over 4 chips
  config.model.remat = True
  config.log_every_steps = 1
  config.eval.batch_size = 2048
  return config
