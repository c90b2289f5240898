"""Every setting of a run, with its default, unit and range; and the check for bad combinations.

Defaults are the released recipe on CUHK-PEDES. A file in `configs/` calls `base()` and changes the
few fields that differ; the command line changes single fields: `--config.batch_size=128`. The
config is locked: an unknown field stops the run.
"""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dgia_jax import bucket, user_files
from dgia_jax.config_ranges import (
  check_caption_exchange,
  check_local_relations_are_mined,
  check_neighbours_are_mined,
  check_positive,
  check_range,
  check_smallest_and_largest,
  check_start_epochs,
  check_trainable,
  get,
  numbers,
)
from dgia_jax.data import images
from dgia_jax.errors import UserError
from dgia_jax.method import (
  bank_search,
  confidence_gate,
  global_association,
  local_association,
  losses,
  optimizer,
  scored_weights,
)

# Fields that may change between two starts of one run: where and how it runs, not its results.
RUNTIME_FIELDS = (
  "mesh", "gradient_accumulation", "log_every_steps", "dataset.data_dir", "dataset.source",
  "dataset.annotations", "dataset.images", "dataset.workers", "checkpoint", "model.attention",
  "model.pack_captions", "model.remat", "model.full_last_block", "eval.batch_size",
  "eval.before_training", "eval.contact_sheet", "eval.test_time", "profile", "wandb",
)  # fmt: skip
CHOICES = {
  "dataset.resize": tuple(images.RESIZE_FILTERS),
  "model.dtype": ("bfloat16", "float32"),
  "model.attention": ("auto", "cudnn", "written_out"),
  "loss.itc_reduction": losses.ITC_REDUCTIONS,
  "local_association.modality": local_association.MODALITIES,
  "global_association.anchor": bank_search.ANCHORS,
  "bank.gate": confidence_gate.GATES,
  "global_association.loss_over": global_association.LOSS_ROWS,
  "global_association.exclude": global_association.EXCLUSIONS,
  "optimizer.lr_update": optimizer.LR_UPDATES,
  "optimizer.second_moment": optimizer.SECOND_MOMENTS,
  "eval.select_on": ("val", "test"),
  "eval.weights": scored_weights.CHOICES,
}
LOCAL_PATHS = ("dataset.source", "dataset.annotations", "dataset.images")
LOCAL_OR_REMOTE_PATHS = ("dataset.data_dir", "pretrained")
MAX_SEED = 2**32 - 1  # JAX's random keys drop higher bits


def base() -> ConfigDict:
  """The default config: DGIA as released, on CUHK-PEDES. Returns a locked `ConfigDict`."""
  config = ConfigDict()
  config.seed = 0  # for initial weights, order of pairs and distorted views; below 2**32
  config.batch_size = 64  # pairs in the global batch; divisible by mesh.data x mesh.fsdp
  config.gradient_accumulation = 1  # parts of a batch encoded one after another; saves memory
  config.num_epochs = 40  # passes over the training pairs
  config.eval_every_epochs = 1  # epochs between evaluations; the last is always evaluated
  config.log_every_steps = 50  # steps between lines of the training log
  # Initial weights: "mini", the small model that comes with the package; hub name or folder of a
  # CLIP or SigLIP model (Hugging Face, open_clip), a .pt or .pth file, or a run's working directory
  # (its best checkpoint and its vocabulary), all of them also at gs://; "" = from scratch.
  # docs/backbones.md lists which belong to which model.name.
  config.pretrained = ""

  config.mesh = ConfigDict()
  config.mesh.data = -1  # devices the batch is split over; -1 = all remaining devices
  config.mesh.fsdp = 1  # devices the batch and the parameters are split over
  config.mesh.tensor = 1  # devices a layer is split over

  config.dataset = ConfigDict()
  config.dataset.name = "cuhk_pedes"  # one of dgia_jax.data.datasets.names()
  # Of built datasets, also at gs://; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.dataset.data_dir = ""
  config.dataset.source = ""  # folder with the dataset as its owners distribute it
  config.dataset.annotations = ""  # custom: JSON file
  config.dataset.images = ""  # custom: image folder
  config.dataset.image_size = (384, 128)  # height, width in pixels
  # Filter that images are resized with: bilinear (released), bicubic (CLIP's own preprocessing).
  config.dataset.resize = "bilinear"
  config.dataset.workers = 8  # processes that decode images; 0 = threads of this process
  config.dataset.options = ConfigDict()  # of the dataset's builder, see docs/own_data.md

  config.tokenizer = ConfigDict()
  config.tokenizer.name = "openai/clip-vit-base-patch16"  # hub name or folder; "" = own vocabulary
  config.tokenizer.context_length = 77  # tokens a caption is cut or padded to
  # Largest size of a vocabulary that is learned from the training captions (name = "").
  config.tokenizer.vocab_size = 49408
  # Not in the paper: words that occur at least this many times in the training captions get tokens
  # of their own if the vocabulary of `pretrained` splits them into pieces (name = ""); 0 = none.
  config.tokenizer.new_words = 0

  config.model = ConfigDict()
  config.model.name = "vit_b_16"  # one of dgia_jax.models.dual_encoder.SIZES
  config.model.dtype = "bfloat16"  # of the encoders' arithmetic: bfloat16 or float32
  config.model.attention = "auto"  # implementation: auto, cudnn (NVIDIA, bfloat16), written_out
  # Encode several captions in one sequence, so that little padding is computed; False = each one
  # padded to context_length. Changes speed, not results.
  config.model.pack_captions = True
  config.model.remat = False  # recompute activations in the backward pass to save memory
  # Compute the last block of a tower for all tokens, of which one is read; for comparison only.
  config.model.full_last_block = False

  config.loss = ConfigDict()
  config.loss.temperature = 0.02  # tau, divides cosines; > 0
  # Train tau, as CLIP does, from the value above and within [0.01, 1]; all four losses share it.
  config.loss.learnable_temperature = False
  config.loss.epsilon = 1e-6  # inside log(q + epsilon)
  # How image-to-text and text-to-image losses are combined: mean (released code), sum (Eq. 1-2).
  config.loss.itc_reduction = "mean"
  # Not in the paper: share of the contrastive loss's targets that is spread evenly over the batch.
  config.loss.label_smoothing = 0.0
  config.loss.weights = ConfigDict(
    {
      "itc": 1.0,  # contrastive loss; a weight of 0 switches a loss off, at no cost
      "local": 1.0,  # local association loss, section 3.2
      "global": 1.0,  # global association loss, section 3.3
      "consistency": 1.0,  # local association loss on the distorted view, section 3.4
    }
  )

  config.local_association = ConfigDict()
  config.local_association.threshold = 0.7  # theta: a relation needs a cosine above it
  config.local_association.relation_label = 0.1  # lambda: label of a mined relation; true pair: 1
  config.local_association.modality = "both"  # both, image, text (Table 5) or none
  config.local_association.start_epoch = 1  # first epoch with local and consistency loss, from 1

  config.global_association = ConfigDict()
  config.global_association.threshold = 0.7  # theta: a neighbour needs a cosine above it
  config.global_association.k = 3  # neighbours an anchor may keep
  config.global_association.anchor = "image"  # image, text or both: mean cosine (Table 6)
  config.global_association.loss_over = "all"  # rows of the loss: all (released) or batch (Eq. 13)
  config.global_association.exclude = "top1"  # drop the best-ranked row (released) or the own: self
  config.global_association.exclude_same_image = False  # drop rows that hold the anchor's own image
  config.global_association.start_epoch = 2  # first epoch with this loss, from 2

  # Not in the paper: filters that mine fewer wrong relations, see method/strict_mining.py.
  config.strict_mining = ConfigDict()
  config.strict_mining.reciprocal = False  # a neighbour must retrieve the anchor in return
  config.strict_mining.require_text_match = False  # a neighbour's caption must exceed theta, too
  # Cosines must also exceed the batch's mean by this many standard deviations; 0 = off.
  config.strict_mining.local_threshold_num_stds = 0.0
  # The same for the cosines of global neighbours.
  config.strict_mining.global_threshold_num_stds = 0.0

  # Not in the paper, see method/caption_exchange.py. Captions are then not packed.
  config.caption_exchange = ConfigDict()
  # Probability that an image is trained with the caption of a neighbour that global association
  # mined for it in its last epoch, if there is one, instead of its own; 0 = off.
  config.caption_exchange.prob = 0.0

  config.bank = ConfigDict()
  config.bank.update_rate = 0.9  # alpha: weight of a row's new feature, from the second epoch on
  # Not in the paper, method/confidence_gate.py: scale alpha by a confidence in the pair: off, pair,
  # rank, neighbours, running.
  config.bank.gate = "off"
  config.bank.block_rows = 0  # rows of a shard scored at a time, bounds memory; 0 = by platform

  # Of the distorted view, unless a setting says otherwise.
  config.augment = ConfigDict()
  config.augment.flip_prob = 0.5  # probability of mirroring
  config.augment.padding = 10  # pixels around the image before the random crop
  config.augment.erase_prob = 0.5  # probability of erasing a rectangle
  config.augment.erase_area = (0.02, 0.4)  # smallest and largest share of the image
  config.augment.erase_aspect = (0.3, 3.3)  # smallest and largest height / width
  config.augment.mask_ratio = 0.5  # probability of masking a word, independently
  config.augment.mask_first = True  # always mask the first word (released code, by a slip)
  # Not in the paper: share of the image's patches that are left out, which saves their arithmetic.
  config.augment.patch_drop_ratio = 0.0
  # Not in the paper: probability of mirroring the undistorted image.
  config.augment.clean_flip_prob = 0.0
  # Not in the paper: pixels around the undistorted image before a random crop.
  config.augment.clean_padding = 0
  # Not in the paper: probability of masking a word of the undistorted caption.
  config.augment.clean_mask_ratio = 0.0

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 1e-5  # after the warm-up
  config.optimizer.warmup_epochs = 5  # linear, from a tenth
  config.optimizer.lr_update = "epoch"  # set the rate once per epoch (released) or every step
  config.optimizer.betas = (0.9, 0.999)  # of Adam's two averages
  config.optimizer.epsilon = 1e-3  # large on purpose: the released code trains float16 weights
  config.optimizer.weight_decay = 4e-5  # not on biases
  config.optimizer.decoupled = False  # False: added to the gradient (released); True: AdamW
  config.optimizer.bias_lr_multiplier = 2.0  # rate of biases, relative to other weights
  config.optimizer.second_moment = "float32"  # float16 emulates the released code's precision
  config.optimizer.clip_norm = 0.0  # larger gradients are scaled down to this norm; 0 = off
  # Learning rate of a block relative to the next one, embeddings last; 1 = one rate for all.
  config.optimizer.layer_decay = 1.0

  # Not in the paper, see docs/fine_tuning.md.
  config.freeze = ConfigDict()
  # First blocks of the tower that keep their weights, and with them the embeddings; 0 = none, -1 =
  # the whole tower with its projection. They need no backward pass and no optimiser state.
  config.freeze.image_blocks = 0
  config.freeze.text_blocks = 0  # the same for the text tower

  # Not in the paper, see docs/fine_tuning.md.
  config.lora = ConfigDict()
  config.lora.rank = 0  # train products of this rank, added to frozen kernels; 0 = off
  config.lora.alpha = 16.0  # the products are scaled by alpha / rank
  config.lora.matrices = ("qkv", "out", "up", "down")  # kernels of a block that are adapted

  # Not in the paper, see docs/fine_tuning.md.
  config.ema = ConfigDict()
  # Decay per step of a moving average of the weights, which is evaluated beside them; 0 = off.
  config.ema.decay = 0.0
  # Instead: share of the initial weights in an average of them and the trained ones (WiSE-FT);
  # token embeddings stay the trained ones; 0 = off.
  config.ema.initial_share = 0.0

  config.eval = ConfigDict()
  config.eval.batch_size = 256  # images or captions embedded at a time, over all devices
  # Weights that are scored, and used afterwards: raw, ema for their average (see ema), or better:
  # whichever of the two has the higher R@1 on eval.select_on in an evaluation.
  config.eval.weights = "raw"
  config.eval.select_on = "val"  # split whose R@1 chooses the best epoch: val or test
  config.eval.before_training = False  # score the initial weights as well, as epoch 0
  config.eval.contact_sheet = True  # draw ten test captions with their best images at the end
  # Not in the paper, training/test_time.py: corrections of the final text-to-image ranking, scored
  # beside the plain one.
  config.eval.test_time = ConfigDict()
  config.eval.test_time.smooth_neighbours = 0  # images that an image is averaged with; 0 = off
  # Share of an image's mean cosine to its nearest training captions that is subtracted; 0 = off.
  config.eval.test_time.hubness_weight = 0.0
  config.eval.test_time.rerank_candidates = 0  # best images, ranked by shared neighbours; 0 = off
  config.eval.test_time.rerank_neighbours = 6  # k of k-reciprocal neighbours, among candidates
  # Weight of the overlap of neighbours, a number from 0 to 1 that is added to the cosine.
  config.eval.test_time.rerank_weight = 2.0

  config.checkpoint = ConfigDict()
  config.checkpoint.keep = 2  # newest checkpoints kept, besides the best
  config.checkpoint.every_steps = 0  # steps between extra saves; 0 = save only after epochs
  config.checkpoint.verify = True  # compare restored arrays with the checksums of the saved ones

  config.profile = ConfigDict()
  config.profile.steps = 0  # steps to profile, written to WORKDIR/profile; 0 = none
  config.profile.start_step = 10  # first step of the profile, counted from 1

  config.wandb = ConfigDict()
  # Weights & Biases project that gets what TensorBoard gets (extra `wandb`); "" = off.
  config.wandb.project = ""
  return config.lock()


def from_stored(stored: Mapping) -> ConfigDict:
  """The config that a run's config.json describes, under today's names."""
  config = base()
  with config.unlocked():
    config.update(ConfigDict(_with_tuples(dict(stored))))
  return config.lock()


def _with_tuples(tree: Any) -> Any:
  """JSON's lists as the tuples that they were."""
  if isinstance(tree, Mapping):
    return {key: _with_tuples(value) for key, value in tree.items()}
  return tuple(tree) if isinstance(tree, list) else tree


def is_runtime(name: str) -> bool:
  """Whether a field, by its dotted name, is one of `RUNTIME_FIELDS`."""
  return any(name == field or name.startswith(f"{field}.") for field in RUNTIME_FIELDS)


def frozen_blocks(config: ConfigDict) -> dict[str, int]:
  """The number of frozen blocks by tower, as in `trainable.select`."""
  return {"image": config.freeze.image_blocks, "text": config.freeze.text_blocks}


def check(config: ConfigDict) -> None:
  """Finds values and combinations that cannot work, or do nothing.

  Raises:
    UserError: for the first one, in one line that names the field and how to correct it.
  """
  check_values(config)
  check_start_epochs(config)
  check_local_relations_are_mined(config)
  check_neighbours_are_mined(config)
  check_caption_exchange(config)


def check_values(config: ConfigDict) -> None:
  """The part of `check` that also holds for a stored run, which may be of an earlier release.

  Raises:
    UserError: as `check`.
  """
  check_positive(
    config,
    ("batch_size", "gradient_accumulation", "num_epochs", "eval_every_epochs", "log_every_steps",
     "loss.temperature", "loss.epsilon", "global_association.k", "eval.batch_size",
     "optimizer.epsilon", "checkpoint.keep", "tokenizer.context_length", "optimizer.learning_rate",
     "optimizer.layer_decay", "lora.alpha", "eval.test_time.rerank_neighbours"),
  )  # fmt: skip
  for field, choices in CHOICES.items():
    if get(config, field) not in choices:
      raise UserError(f"config.{field}={get(config, field)!r}: choose one of {', '.join(choices)}")
  size = config.dataset.image_size
  if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
    raise UserError(f"config.dataset.image_size={size}: give (height, width)")
  weights = [numbers(config, f"loss.weights.{name}")[0] for name in config.loss.weights]
  if min(weights) < 0 or not any(weights):
    raise UserError("config.loss.weights: none may be negative and one must be above 0")
  for field in ("bank.update_rate", "augment.flip_prob", "augment.erase_prob",
                "augment.mask_ratio", "augment.clean_flip_prob", "augment.clean_mask_ratio",
                "augment.patch_drop_ratio", "caption_exchange.prob",
                "augment.erase_area", "loss.label_smoothing", "optimizer.betas",
                "optimizer.layer_decay", "local_association.relation_label"):  # fmt: skip
    check_range(config, field, 0, 1)
  for field in ("augment.padding", "augment.clean_padding"):
    check_range(config, field, 0, max(size))
  for field in ("dataset.workers", "tokenizer.new_words", "augment.erase_aspect",
                "checkpoint.every_steps", "profile.steps", "profile.start_step",
                "bank.block_rows", "optimizer.warmup_epochs",
                "strict_mining.local_threshold_num_stds",
                "strict_mining.global_threshold_num_stds", "optimizer.weight_decay",
                "optimizer.clip_norm",
                "eval.test_time.smooth_neighbours", "eval.test_time.hubness_weight",
                "eval.test_time.rerank_candidates", "eval.test_time.rerank_weight",
                "lora.rank"):  # fmt: skip
    check_range(config, field, 0, math.inf)
  for field in ("local_association.threshold", "global_association.threshold"):
    numbers(config, field)
  check_range(config, "seed", 0, MAX_SEED)
  for field in ("augment.erase_area", "augment.erase_aspect"):
    check_smallest_and_largest(config, field)
  for field in LOCAL_PATHS:
    user_files.local_path(get(config, field), f"config.{field}")
  for field in LOCAL_OR_REMOTE_PATHS:
    bucket.check(get(config, field), f"config.{field}")
  betas = config.optimizer.betas
  if len(betas) != 2 or max(betas) >= 1:  # an average with a beta of 1 never moves
    raise UserError(f"config.optimizer.betas={betas}: give two numbers from 0 to below 1")
  check_trainable(config)


def changed_fields(config: ConfigDict) -> dict[str, Any]:
  """The fields, by dotted name, that differ from the defaults and decide what a run computes.

  Neither the seed nor `RUNTIME_FIELDS` are among them. Values are as JSON holds them.
  """
  fields = {name: get(config, name) for name in differences(config, {}) if name != "seed"}
  return {n: list(value) if isinstance(value, tuple) else value for n, value in fields.items()}


def differences(config: Mapping | ConfigDict, other: Mapping | ConfigDict) -> list[str]:
  """Dotted names of the fields in which two configs differ, without `RUNTIME_FIELDS`, sorted.

  A field that one of them lacks, because an earlier release wrote it, has its default value.
  """

  def flatten(tree, prefix=""):
    for key, value in tree.items():
      name = f"{prefix}{key}"
      if isinstance(value, dict | ConfigDict):
        yield from flatten(value, f"{name}.")
      else:
        yield name, list(value) if isinstance(value, tuple | list) else value

  defaults = dict(flatten(base()))
  left, right = defaults | dict(flatten(config)), defaults | dict(flatten(other))
  names = {name for name in left.keys() | right.keys() if left.get(name) != right.get(name)}
  return sorted(name for name in names if not is_runtime(name))
