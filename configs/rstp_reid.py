"""RSTPReid with CLIP ViT-B/16 at 384 x 128: the released recipe, 16 epochs.

  python -m dgia_jax.main --config rstp_reid --workdir runs/rstp_reid \\
      --config.dataset.source=FOLDER/RSTPReid

Variants: `:paper` follows the paper: its equations, and 40 epochs; `:plus` exchanges the captions
of mined neighbours, mines no local relations and reads half of the distorted image
(docs/findings.md); `:strong` combines what should score highest (docs/reproducing.md).
Expected (the paper, best test epoch): R@1 61.30, mAP 47.20.
Not yet run with this code: only their owners distribute the dataset and CLIP's weights.
"""

from ml_collections import ConfigDict

from dgia_jax import recipes


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant: "" (released code), "paper", "plus" or "strong"."""
  config = recipes.benchmark("rstp_reid")
  config.num_epochs = 16
  variants = {"paper": recipes.as_in_paper, "plus": recipes.plus, "strong": recipes.strong}
  return recipes.vary(config, variant, variants, "rstp_reid")
