"""CUHK-PEDES with CLIP ViT-B/16 at 384 x 128: the released recipe.

  python -m dgia_jax.main --config configs/cuhk_pedes.py --workdir runs/cuhk_pedes \\
      --config.dataset.source=FOLDER/CUHK-PEDES

Variants: `:paper` follows the paper's equations where the released code differs from them; `:plus`
mines fewer wrong relations than the paper's rules (README, Beyond the paper).
Expected (the paper, best test epoch): R@1 73.06, R@5 89.21, R@10 93.44, mAP 64.88, mINP 48.15.
Not yet run here: the dataset and CLIP's weights are given out by their owners only.
"""

from dgia_jax import config as config_lib
from dgia_jax.errors import UserError


def get_config(variant=""):
  """The config of a variant: "" (released code), "paper" or "plus"."""
  config = config_lib.base()
  config.dataset.name = "cuhk_pedes"
  config.pretrained = "openai/clip-vit-base-patch16"
  config.eval.select_on = "test"  # as the paper; the choice by val stands beside it in results.json
  if variant == "paper":
    config_lib.paper_equations(config)
  elif variant == "plus":
    config_lib.beyond_paper(config)
  elif variant:
    raise UserError(f"configs/cuhk_pedes.py has no variant {variant!r}: use none, :paper or :plus")
  return config
