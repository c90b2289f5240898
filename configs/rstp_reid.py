"""RSTPReid with CLIP ViT-B/16 at 384 x 128: the released recipe, 16 epochs.

  python -m dgia_jax.main --config configs/rstp_reid.py --workdir runs/rstp_reid \\
      --config.dataset.source=FOLDER/RSTPReid

Variants: `:paper` follows the paper: its equations, and 40 epochs; `:plus` mines fewer wrong
relations than the paper's rules (README, Beyond the paper).
Expected (the paper, best test epoch): R@1 61.30, mAP 47.20.
Not yet run here: the dataset and CLIP's weights are given out by their owners only.
"""

from configs import cuhk_pedes
from dgia_jax import config as config_lib
from dgia_jax.errors import UserError


def get_config(variant=""):
  """The config of a variant: "" (released code), "paper" or "plus"."""
  config = cuhk_pedes.get_config()
  config.dataset.name = "rstp_reid"
  config.num_epochs = 16
  if variant == "paper":
    config_lib.paper_equations(config)
  elif variant == "plus":
    config_lib.beyond_paper(config)
  elif variant:
    raise UserError(f"configs/rstp_reid.py has no variant {variant!r}: use none, :paper or :plus")
  return config
