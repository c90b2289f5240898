"""CUHK-PEDES with CLIP ViT-B/16 at 384 x 128: the released recipe.

  python -m dgia_jax.main --config cuhk_pedes --workdir runs/cuhk_pedes \\
      --config.dataset.source=FOLDER/CUHK-PEDES

Variants: `:paper` follows the paper's equations where the released code differs from them; `:plus`
exchanges the captions of mined neighbours, mines no local relations and reads half of the distorted
image (docs/findings.md);
`:strong` combines what should score highest (docs/reproducing.md).
Expected (the paper, best test epoch): R@1 73.06, R@5 89.21, R@10 93.44, mAP 64.88, mINP 48.15.
Not yet run with this code: only their owners distribute the dataset and CLIP's weights.
"""

from ml_collections import ConfigDict

from dgia_jax import recipes


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant: "" (released code), "paper", "plus" or "strong"."""
  config = recipes.benchmark("cuhk_pedes")
  variants = {"paper": recipes.as_in_paper, "plus": recipes.plus, "strong": recipes.strong}
  return recipes.vary(config, variant, variants, "cuhk_pedes")
