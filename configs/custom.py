"""Your own dataset: a JSON list of images with captions, and an image folder.

  python -m dgia_jax.data check custom --source FOLDER
  python -m dgia_jax.main --config custom --workdir runs/mine \\
      --config.dataset.annotations=FILE.json --config.dataset.images=FOLDER

- No variant starts from CLIP ViT-B/16 and follows the released recipe.
- `:mini` fine-tunes `mini`, the model in the package, at 64 x 32 pixels, and `:tiny` trains tiny
  towers from random weights, both in minutes on a CPU.
- `:plus`, `:mini_plus` and `:tiny_plus` exchange the captions of mined neighbours, mine no local
  relations and read half of the distorted image; `:mini_plus` gives new words tokens of their own
  and averages the initial and the trained weights where that scores higher (docs/findings.md).
"""

from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import recipes


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant: "" (CLIP), "mini" or "tiny", or "plus", "mini_plus", "tiny_plus"."""
  config = config_lib.base()
  config.dataset.name = "custom"
  config.dataset.options = dict(holdout=0, skip_unreadable=False)
  config.pretrained = "openai/clip-vit-base-patch16"
  variants = {
    "plus": recipes.plus,
    "mini": recipes.from_mini,
    "mini_plus": _mini_plus,
    "tiny": _tiny,
    "tiny_plus": lambda config: recipes.plus(_tiny(config)),
  }
  return recipes.vary(config, variant, variants, "custom")


def _mini_plus(config: ConfigDict) -> ConfigDict:
  """Fine-tuning of `mini` with what gained most on synthetic people."""
  recipes.plus(recipes.from_mini(config))
  config.ema.initial_share = 0.3  # chosen on val of a dataset with the words of `mini`
  # Averages with `mini` lose where it knows neither the pictures nor the words: val decides.
  config.eval.weights = "better"
  return config


def _tiny(config: ConfigDict) -> ConfigDict:
  """Tiny towers from random weights, whose relations start late."""
  recipes.from_scratch(config)
  config.tokenizer.context_length = 64
  config.tokenizer.vocab_size = 4096
  config.num_epochs = 12
  config.local_association.start_epoch = 9
  config.global_association.start_epoch = 9
  return config
