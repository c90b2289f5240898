import pytest

from dgia_jax import config as config_lib
from dgia_jax import config_ranges
from dgia_jax.errors import UserError
from tests.helpers.settings import changed

MUST_BE_POSITIVE = (
  "batch_size", "gradient_accumulation", "num_epochs", "eval_every_epochs", "log_every_steps",
  "loss.temperature", "global_association.k", "eval.batch_size", "checkpoint.keep",
  "tokenizer.context_length", "optimizer.learning_rate",
)  # fmt: skip
CHOICES = {
  "model.dtype": ("bfloat16", "float32"),
  "loss.itc_reduction": ("mean", "sum"),
  "local_association.modality": ("both", "image", "text", "none"),
  "global_association.anchor": ("image", "text", "both"),
  "global_association.loss_over": ("all", "batch"),
  "global_association.exclude": ("top1", "self"),
  "bank.gate": ("off", "pair", "rank", "neighbours", "running"),
  "optimizer.lr_update": ("epoch", "step"),
  "optimizer.second_moment": ("float32", "float16"),
  "eval.select_on": ("val", "test"),
}
WRONG = [
  *((field, value) for field in MUST_BE_POSITIVE for value in (0, -1)),
  *((field, "other") for field in CHOICES),
  ("dataset.image_size", (64, 0)),
  ("dataset.image_size", (64, 64, 3)),
  ("loss.weights", {"itc": -1.0}),
  ("loss.weights", dict.fromkeys(("itc", "local", "global", "consistency"), 0.0)),
  ("global_association.start_epoch", 1),
  ("strict_mining.local_threshold_num_stds", -1.0),
  ("strict_mining.global_threshold_num_stds", -1.0),
  ("optimizer.learning_rate", float("nan")),
  ("seed", 2**32),
  ("dataset.data_dir", "s3://bucket/data"),
  ("pretrained", "s3://bucket/weights"),
  ("seed", -1),
  ("dataset.workers", -1),
  ("checkpoint.every_steps", -1),
  ("optimizer.warmup_epochs", -1),
  ("optimizer.weight_decay", -0.1),
  ("optimizer.epsilon", -1e-3),
  ("optimizer.epsilon", 0.0),
  ("optimizer.betas", (0.9,)),
  ("optimizer.betas", (0.9, 1.5)),
  ("optimizer.betas", (0.9, 1.0)),
  ("optimizer.betas", (1.0, 0.999)),
  ("loss.epsilon", -1.0),
  ("loss.epsilon", 0.0),
  ("local_association.threshold", float("nan")),
  ("global_association.threshold", float("nan")),
  ("local_association.relation_label", -0.1),
  ("local_association.relation_label", 1.1),
  ("local_association.start_epoch", 0),
  ("global_association.start_epoch", 0),
  ("augment.padding", -2),
  ("augment.flip_prob", 1.5),
  ("augment.erase_prob", -0.5),
  ("augment.mask_ratio", 1.1),
  ("augment.erase_area", (0.5, 0.1)),
  ("augment.erase_area", (0.1, 2.0)),
  ("augment.erase_aspect", (0.3,)),
  ("augment.erase_aspect", (0.0, 3.3)),
  ("augment.erase_area", (0.0, 0.4)),
  ("bank.update_rate", 1.1),
  ("bank.update_rate", -0.1),
]


@pytest.mark.parametrize("field, value", WRONG, ids=str)
def test_check_names_the_wrong_field(field, value):
  config = config_lib.base()
  if isinstance(value, dict):
    config.loss.weights.update(value)
  else:
    config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError) as caught:
    config_lib.check(config)
  assert str(caught.value).startswith(f"config.{field}")
  assert "\n" not in str(caught.value)


def test_check_names_the_choices():
  for field, choices in CHOICES.items():
    for choice in choices:
      config_lib.check(changed(**{field.replace(".", "__"): choice}))
    with pytest.raises(UserError, match=f"choose one of {', '.join(choices)}"):
      config_lib.check(changed(**{field.replace(".", "__"): "other"}))


def test_limits_are_allowed():
  config_lib.check(changed(bank__update_rate=0.0))
  config_lib.check(changed(bank__update_rate=1.0))
  config_lib.check(changed(loss__weights__itc=0.0))
  # A loss that is off may start whenever it likes.
  off = dict(global_association__start_epoch=1, loss__weights__global=0.0)
  config_lib.check(changed(**off))
  with pytest.raises(UserError, match="config.global_association.start_epoch=1: .*epoch 2"):
    config_lib.check(changed(**off, caption_exchange__prob=0.5))  # which mines, too


@pytest.mark.parametrize(
  "field, value",
  [
    ("global_association__anchor", "text"),
    ("global_association__anchor", "both"),
    ("strict_mining__require_text_match", True),
    ("bank__gate", "pair"),
    ("bank__gate", "running"),
  ],
)
def test_exchanged_captions_are_not_taken_for_the_pairs_own(field, value):
  config_lib.check(changed(**{field: value}))
  config_lib.check(changed(caption_exchange__prob=0.5))
  name = field.replace("__", ".")
  with pytest.raises(UserError, match=f"config.caption_exchange.prob=0.5: config.{name}={value} "):
    config_lib.check(changed(caption_exchange__prob=0.5, **{field: value}))


def test_what_starts_after_the_end_is_named():
  from configs import custom

  def never_starting(num_epochs):
    config.num_epochs = num_epochs
    config_lib.check(config)  # a short run may try out a config
    return config_ranges.never_starting(config)

  config = custom.get_config("tiny")  # relations start in epoch 9
  starts = "config.{}_association.start_epoch=9: the run ends before {}, since config.num_epochs={}"
  assert never_starting(9) == []
  assert never_starting(8) == [
    starts.format("local", "the local and consistency losses start", 8),
    starts.format("global", "the global loss starts", 8),
  ]
  config.loss.weights.update({"consistency": 0.0, "global": 0.0})
  assert never_starting(8) == [starts.format("local", "the local loss starts", 8)]
  config.loss.weights["local"] = 0.0
  assert never_starting(8) == []
  config.caption_exchange.prob = 0.5  # from the epoch after on
  for num_epochs in (8, 9):
    (sentence,) = never_starting(num_epochs)
    assert sentence == starts.format("global", "captions are exchanged", num_epochs)
  assert never_starting(10) == []


@pytest.mark.parametrize(
  "field, value",
  [
    ("strict_mining__reciprocal", True),
    ("strict_mining__require_text_match", True),
    ("strict_mining__global_threshold_num_stds", 2.0),
    ("bank__gate", "neighbours"),
  ],
)
def test_what_judges_mined_neighbours_needs_some(field, value):
  config_lib.check(changed(**{field: value}))
  name = field.replace("__", ".")
  with pytest.raises(UserError, match=f"config.{name}={value}: needs mined neighbours"):
    config_lib.check(changed(**{field: value, "loss__weights__global": 0.0}))


@pytest.mark.parametrize(
  "without",
  [
    {"local_association__modality": "none"},
    {"loss__weights__local": 0.0, "loss__weights__consistency": 0.0},
  ],
  ids=["modality", "weights"],
)
def test_a_threshold_on_local_relations_needs_some(without):
  stds = {"strict_mining__local_threshold_num_stds": 2.0}
  config_lib.check(changed(**stds))
  config_lib.check(changed(**stds, loss__weights__local=0.0))  # consistency mines them, too
  with pytest.raises(UserError, match="local_threshold_num_stds=2.0: needs local relations"):
    config_lib.check(changed(**stds, **without))


def test_a_finished_run_may_break_the_rules_for_new_ones():
  config = changed(strict_mining__reciprocal=True, loss__weights__global=0.0)
  config_lib.check_values(config)
  with pytest.raises(UserError, match="strict_mining.reciprocal=True"):
    config_lib.check(config)


def test_relations_of_captions_alone_are_not_mined_from_exchanged_ones():
  exchange = dict(caption_exchange__prob=0.5, local_association__modality="text")
  with pytest.raises(UserError, match="config.local_association.modality=text .* set it to image"):
    config_lib.check(changed(**exchange))
  config_lib.check(changed(**exchange, loss__weights__local=0.0, loss__weights__consistency=0.0))
  config_lib.check(changed(**exchange | {"local_association__modality": "both"}))
