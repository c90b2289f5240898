"""Every setting of a run, its default, unit and range; and the check for bad combinations.

Defaults are the released recipe on CUHK-PEDES. A file in `configs/` calls `base()` and changes the
few fields that differ; the command line changes single fields: `--config.batch_size=128`. The
config is locked: an unknown field stops the run.
"""

import functools
import math

from ml_collections import ConfigDict

from dgia_jax.errors import UserError

# Fields that may change between two starts of one run: where and how it runs, not what it computes.
RUNTIME_FIELDS = (
  "mesh", "gradient_accumulation", "log_every_steps", "dataset.data_dir", "dataset.source",
  "dataset.workers", "checkpoint", "model.attention",
)  # fmt: skip


def base():
  """The default config: DGIA as released, on CUHK-PEDES. Returns a locked `ConfigDict`."""
  config = ConfigDict()
  config.seed = 0  # of initial weights, order of pairs and distorted views
  config.batch_size = 64  # pairs in the global batch; divisible by mesh.data x mesh.fsdp
  config.gradient_accumulation = 1  # parts of a batch encoded one after another; saves memory
  config.num_epochs = 40  # passes over the training pairs
  config.eval_every_epochs = 1  # the last epoch is always evaluated
  config.log_every_steps = 50  # steps between lines of the training log
  # Where weights start from: Hugging Face CLIP folder or hub name, OpenAI .pt, best.pth, or the
  # folder of a run (its best checkpoint, and its vocabulary); "" = scratch.
  config.pretrained = ""

  config.mesh = ConfigDict()
  config.mesh.data = -1  # devices the batch is split over; -1 = all that are left
  config.mesh.fsdp = 1  # devices the batch and the parameters are split over
  config.mesh.tensor = 1  # devices a layer is split over

  config.dataset = ConfigDict()
  config.dataset.name = "cuhk_pedes"  # one of dgia_jax.data.datasets.names()
  config.dataset.data_dir = ""  # of built datasets; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets
  config.dataset.source = ""  # folder with the dataset as its owners give it out
  config.dataset.annotations = ""  # custom: JSON file
  config.dataset.images = ""  # custom: image folder
  config.dataset.image_size = (384, 128)  # height, width in pixels
  # Filter that images are resized with: bilinear (released), bicubic (CLIP's own preprocessing).
  config.dataset.resize = "bilinear"
  config.dataset.workers = 8  # processes that decode images; 0 = threads of this process
  config.dataset.options = ConfigDict()  # settings of the dataset's own builder

  config.tokenizer = ConfigDict()
  config.tokenizer.name = "openai/clip-vit-base-patch16"  # hub name or folder; "" = own vocabulary
  config.tokenizer.context_length = 77  # tokens a caption is cut or padded to
  config.tokenizer.vocab_size = 49408  # of an own vocabulary, at most (name = "")

  config.model = ConfigDict()
  config.model.name = "vit_b_16"  # a size in dgia_jax.models.dual_encoder.SIZES
  config.model.dtype = "bfloat16"  # of the encoders' arithmetic: bfloat16 or float32
  config.model.attention = "auto"  # how it is computed: auto, cudnn (NVIDIA, bfloat16), written_out
  config.model.remat = False  # recompute activations in the backward pass to save memory

  config.loss = ConfigDict()
  config.loss.temperature = 0.02  # tau, divides cosines; > 0
  config.loss.epsilon = 1e-6  # inside log(q + epsilon)
  config.loss.itc_reduction = "mean"  # of the two directions: mean (released), sum (Eq. 1-2)
  config.loss.itc_spares_relations = False  # not the paper's: mined mates are no negatives
  config.loss.weights = ConfigDict(
    {
      "itc": 1.0,  # contrastive loss; a weight of 0 switches a loss off and saves its cost
      "local": 1.0,  # local association loss, section 3.2
      "global": 1.0,  # global association loss, section 3.3
      "consistency": 1.0,  # local association loss on the distorted view, section 3.4
    }
  )

  config.local_association = ConfigDict()
  config.local_association.threshold = 0.7  # theta, cosine, strict
  config.local_association.relation_label = 0.1  # lambda, label of a mined relation
  config.local_association.modality = "both"  # both, image, text (Table 5) or none
  config.local_association.start_epoch = 1  # from 1; first epoch with these two losses
  # Not the paper's: a cosine must also exceed the batch's mean by so many standard deviations.
  config.local_association.deviations = 0.0

  config.global_association = ConfigDict()
  config.global_association.threshold = 0.7  # theta, cosine, strict
  config.global_association.k = 3  # neighbours an anchor may keep
  config.global_association.anchor = "image"  # image, text or both: mean cosine (Table 6)
  config.global_association.soft_scale = 1.0  # of the confidence weights' bracket
  config.global_association.loss_over = "all"  # rows of the loss: all (released) or batch (Eq. 13)
  config.global_association.exclude = "top1"  # drop the best-ranked row (released) or the own: self
  config.global_association.exclude_same_image = False  # drop rows that hold the anchor's own image
  config.global_association.consult_batch = False  # related pairs of the batch become positives
  config.global_association.start_epoch = 2  # from 1; first epoch with this loss
  # Not the paper's, to mine fewer wrong neighbours: a cosine must also exceed the batch's mean by
  # so many standard deviations.
  config.global_association.deviations = 0.0
  config.global_association.agreement = False  # not the paper's: texts must exceed theta, too
  config.global_association.mutual = False  # not the paper's: a neighbour must find the anchor back

  config.sampling = ConfigDict()  # not the paper's: which pairs share a batch
  config.sampling.group = 1  # pairs placed together, led by the bank's neighbours; 1 = at random
  config.sampling.start_epoch = 2  # from 2; first epoch that is led by the bank

  config.bank = ConfigDict()
  config.bank.update_rate = (
    0.9  # alpha, weight of the NEW feature in a row, from the second epoch on
  )
  config.bank.gated = False  # scale alpha by the cosine of the pair's image and text
  config.bank.block_rows = 0  # rows of a shard scored at once, bounds memory; 0 = by platform

  config.augment = ConfigDict()  # of the distorted view
  config.augment.flip_prob = 0.5  # probability of mirroring
  config.augment.padding = 10  # pixels around the image before the random crop
  config.augment.erase_prob = 0.5  # probability of erasing a rectangle
  config.augment.erase_area = (0.02, 0.4)  # smallest and largest share of the image
  config.augment.erase_aspect = (0.3, 3.3)  # smallest and largest height / width
  config.augment.mask_ratio = 0.5  # probability of masking a word, independently
  config.augment.mask_first = True  # mask the first word always (released code, by a slip)

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 1e-5  # after the warm-up
  config.optimizer.warmup_epochs = 5  # linear, from a tenth
  config.optimizer.lr_update = "epoch"  # set the rate once an epoch (released) or every step
  config.optimizer.betas = (0.9, 0.999)  # of Adam's two averages
  config.optimizer.epsilon = 1e-3  # large on purpose: the released code trains float16 weights
  config.optimizer.weight_decay = 4e-5  # not on biases
  config.optimizer.decoupled = False  # False: added to the gradient (released); True: AdamW
  config.optimizer.bias_lr_multiplier = 2.0  # biases learn this many times faster
  config.optimizer.second_moment = "float32"  # float16 emulates the released code's precision

  config.eval = ConfigDict()
  config.eval.batch_size = 256  # images or captions embedded at once, over all devices
  config.eval.select_on = "val"  # split whose R@1 chooses the best epoch: val or test
  config.eval.contact_sheet = True  # draw ten test captions with their best images at the end

  config.checkpoint = ConfigDict()
  config.checkpoint.keep = 2  # newest checkpoints kept, besides the best
  config.checkpoint.every_steps = 0  # also save every so many steps; 0 = at the end of epochs only
  return config.lock()


def paper_equations(config):
  """Changes `config` to the paper's equations where the released code differs from them.

  Returns:
    The same config.
  """
  config.loss.itc_reduction = "sum"  # Eq. 1-2
  config.global_association.loss_over = "batch"  # Eq. 13
  config.augment.mask_first = False  # every word is masked with the same probability
  config.num_epochs = 40
  return config


def beyond_paper(config):
  """Turns on what mines fewer wrong relations than the paper's rules (README, Beyond the paper).

  On both datasets that it was tried on, the share of right global relations rises to nearly twice
  the method's at the same cost; R@1 does not rise with it, and falls on one of four splits.

  Returns:
    The same config.
  """
  config.global_association.agreement = True
  config.global_association.mutual = True
  return config


def from_scratch(config):
  """Changes `config` to a recipe for tiny towers without pretrained weights, in float32 on a CPU.

  Features mean nothing at first and nearly all cosines are high, so the temperature is warmer and
  the losses that need relations wait (`start_epoch`, to be set by the caller).

  Returns:
    The same config.
  """
  config.pretrained = ""
  config.tokenizer.name = ""
  config.tokenizer.context_length = 32
  config.tokenizer.vocab_size = 1024
  config.dataset.workers = 0
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


def _get(config, field):
  return functools.reduce(lambda group, name: group[name], field.split("."), config)


def _positive(config, fields):
  for field in fields:
    if _get(config, field) <= 0:
      raise UserError(f"config.{field}={_get(config, field)}: must be positive")


def _within(config, field, low, high):
  """Checks a number, or every number of a tuple."""
  value = _get(config, field)
  values = value if isinstance(value, tuple) else (value,)
  if not all(low <= number <= high for number in values):
    raise UserError(f"config.{field}={value}: must lie in [{low}, {high}]")


def _one_of(config, field, choices):
  group, name = field.split(".")
  if config[group][name] not in choices:
    raise UserError(f"config.{field}={config[group][name]!r}: choose one of {', '.join(choices)}")


def check(config):
  """Finds values and combinations that cannot work.

  Args:
    config: a resolved config.

  Raises:
    UserError: for the first one found, in one line that names the field and what to do.
  """
  _positive(
    config,
    ("batch_size", "gradient_accumulation", "num_epochs", "eval_every_epochs", "log_every_steps",
     "loss.temperature", "global_association.k", "sampling.group", "eval.batch_size",
     "checkpoint.keep", "tokenizer.context_length", "optimizer.learning_rate"),
  )  # fmt: skip
  _one_of(config, "dataset.resize", ("bilinear", "bicubic"))
  _one_of(config, "model.dtype", ("bfloat16", "float32"))
  _one_of(config, "model.attention", ("auto", "cudnn", "written_out"))
  _one_of(config, "loss.itc_reduction", ("mean", "sum"))
  _one_of(config, "local_association.modality", ("both", "image", "text", "none"))
  _one_of(config, "global_association.anchor", ("image", "text", "both"))
  _one_of(config, "global_association.loss_over", ("all", "batch"))
  _one_of(config, "global_association.exclude", ("top1", "self"))
  _one_of(config, "optimizer.lr_update", ("epoch", "step"))
  _one_of(config, "optimizer.second_moment", ("float32", "float16"))
  _one_of(config, "eval.select_on", ("val", "test"))
  if min(config.dataset.image_size) <= 0 or len(config.dataset.image_size) != 2:
    raise UserError(f"config.dataset.image_size={config.dataset.image_size}: give (height, width)")
  if min(config.loss.weights.values()) < 0 or not any(config.loss.weights.values()):
    raise UserError("config.loss.weights: none may be negative and one must be above 0")
  if config.global_association.start_epoch < 2 and config.loss.weights["global"]:
    raise UserError(
      f"config.global_association.start_epoch={config.global_association.start_epoch}: "
      "the bank is filled during epoch 1, so the global loss can start in epoch 2 at the earliest"
    )
  if config.sampling.start_epoch < 2 and config.sampling.group > 1:
    raise UserError(
      f"config.sampling.start_epoch={config.sampling.start_epoch}: the bank is filled during epoch"
      " 1, so it can lead the sampling from epoch 2 on"
    )
  for field in ("bank.update_rate", "augment.flip_prob", "augment.erase_prob", "augment.mask_ratio",
                "augment.erase_area", "optimizer.betas"):  # fmt: skip
    _within(config, field, 0, 1)
  for field in ("seed", "dataset.workers", "augment.padding", "augment.erase_aspect",
                "checkpoint.every_steps", "bank.block_rows", "optimizer.warmup_epochs",
                "local_association.deviations", "global_association.deviations",
                "optimizer.weight_decay", "optimizer.epsilon", "loss.epsilon"):  # fmt: skip
    _within(config, field, 0, math.inf)
  for field in ("augment.erase_area", "augment.erase_aspect"):
    if len(_get(config, field)) != 2 or _get(config, field)[0] > _get(config, field)[1]:
      raise UserError(f"config.{field}={_get(config, field)}: give the smallest and the largest")
    if _get(config, field)[0] <= 0:  # sizes are drawn by their logarithms
      raise UserError(f"config.{field}={_get(config, field)}: the smallest must be above 0")
  if len(config.optimizer.betas) != 2:
    raise UserError(f"config.optimizer.betas={config.optimizer.betas}: give two numbers")


def differences(config, other):
  """Names of the fields in which two configs differ, those of `RUNTIME_FIELDS` left out.

  Args:
    config, other: configs, or plain dicts as read from config.json.

  Returns:
    Sorted list of dotted names.
  """

  def flatten(tree, prefix=""):
    for key, value in tree.items():
      name = f"{prefix}{key}"
      if isinstance(value, dict | ConfigDict):
        yield from flatten(value, f"{name}.")
      else:
        yield name, list(value) if isinstance(value, tuple | list) else value

  mine, yours = dict(flatten(config)), dict(flatten(other))
  runtime = lambda name: any(name == f or name.startswith(f + ".") for f in RUNTIME_FIELDS)
  names = {name for name in mine.keys() | yours.keys() if mine.get(name) != yours.get(name)}
  return sorted(name for name in names if not runtime(name))
