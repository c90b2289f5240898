"""Recipes that the files in `configs/` share: what each changes in the default settings.

All but `benchmark` change a config in place and return it; `vary` chooses one by its name.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from dgia_jax.config import base
from dgia_jax.errors import UserError


def vary(
  config: ConfigDict,
  variant: str,
  variants: Mapping[str, Callable[[ConfigDict], ConfigDict]],
  name: str,
) -> ConfigDict:
  """The config of one variant of a file in `configs/`.

  Args:
    config: without a variant.
    variant: a key of `variants`; "" for none.
    variants: by name, what makes the variant of the config.
    name: of the file.

  Raises:
    UserError: the variant is unknown.
  """
  if not variant:
    return config
  if variant not in variants:
    choices = f", or use one of {', '.join(f':{known}' for known in variants)}" if variants else ""
    raise UserError(f"configs/{name}.py has no variant {variant!r}: leave it out{choices}")
  return variants[variant](config)


def benchmark(name: str) -> ConfigDict:
  """The released recipe on a benchmark of the paper, from CLIP ViT-B/16."""
  config = base()
  config.dataset.name = name
  config.pretrained = "openai/clip-vit-base-patch16"
  config.eval.select_on = "test"  # as the paper; results.json also gives the choice by val
  return config


def as_in_paper(config: ConfigDict) -> ConfigDict:
  """The paper's equations and number of epochs where the released code differs."""
  config.loss.itc_reduction = "sum"  # Eq. 1-2
  config.global_association.loss_over = "batch"  # Eq. 13
  config.augment.mask_first = False  # every word is masked with the same probability
  config.num_epochs = 40
  return config


def plus(config: ConfigDict) -> ConfigDict:
  """What gained most on synthetic people (docs/findings.md).

  Images take the captions of their mined neighbours, and no relations are mined inside a batch.
  Half of the distorted image's patches are not read. Words that `mini` has never read get tokens of
  their own; the vocabularies of CLIP and SigLIP stay as they are. If training starts from `mini`,
  the weights that are scored and used are averages of the initial and the trained ones.
  """
  config.caption_exchange.prob = 0.7
  config.loss.weights["local"] = 0.0
  config.local_association.modality = "none"  # the distorted view is matched to itself alone
  config.augment.patch_drop_ratio = 0.5
  config.tokenizer.new_words = 3
  if config.pretrained == "mini":
    config.ema.initial_share = 0.4
    config.eval.weights = "ema"
  return config


def strong(config: ConfigDict) -> ConfigDict:
  """What should score highest on one GPU; not yet run.

  `plus`, masked words and half the rate for weights that were pretrained on people, which
  the caller of the program names (`config.pretrained`). The epoch is chosen on val.
  docs/reproducing.md lists where each gain was published.
  """
  plus(config)
  config.augment.clean_mask_ratio = 0.15
  config.optimizer.learning_rate /= 2
  config.eval.select_on = "val"
  return config


def from_scratch(config: ConfigDict) -> ConfigDict:
  """A recipe for tiny towers without pretrained weights, on a CPU.

  At first features mean nothing and nearly all cosines are high, so the temperature is warmer and
  the losses that need relations start later (`start_epoch`, set by the caller).
  """
  config.pretrained = ""
  config.tokenizer.name = ""
  config.tokenizer.context_length = 32
  config.tokenizer.vocab_size = 1024
  config.dataset.workers = 0
  config.dataset.image_size = (64, 32)
  config.model.name = "tiny"
  config.model.dtype = "float32"
  config.model.remat = True  # as fast here, in less memory: small towers wait for memory
  config.loss.temperature = 0.05
  config.batch_size = 128
  config.augment.padding = 4
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_epochs = 1
  config.optimizer.lr_update = "step"
  config.optimizer.epsilon = 1e-8
  config.optimizer.weight_decay = 0.05
  config.optimizer.decoupled = True
  config.optimizer.bias_lr_multiplier = 1.0
  return config


def from_mini(config: ConfigDict) -> ConfigDict:
  """Fine-tuning of `mini`, the model in the package, on a CPU.

  Relations start in the released epochs, because features mean something from the start.
  """
  from_scratch(config)
  config.pretrained = "mini"
  config.model.name = "mini"
  config.batch_size = 64
  config.num_epochs = 8
  config.optimizer.learning_rate = 7e-4
  config.eval.before_training = True
  return config
