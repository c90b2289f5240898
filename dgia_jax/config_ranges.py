"""Checks of settings: each raises UserError in one line that names the field."""

import functools
import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from dgia_jax.errors import UserError
from dgia_jax.method import confidence_gate, ema, learnable_temperature, lora, mining, trainable

# The bank is filled during epoch 1.
_FIRST_GLOBAL_EPOCH = 2


def get(config: ConfigDict, field: str) -> Any:
  """The value of a field by its dotted name."""
  return functools.reduce(lambda group, name: group[name], field.split("."), config)


def numbers(config: ConfigDict, field: str) -> tuple:
  """The number of a field, or the numbers of a tuple.

  Raises:
    UserError: for anything else, NaN included.
  """
  value = get(config, field)
  values = value if isinstance(value, tuple) else (value,)
  if not all(isinstance(n, int | float) and not math.isnan(n) for n in values):
    raise UserError(f"config.{field}={value!r}: give a number")
  return values


def check_positive(config: ConfigDict, fields: Iterable[str]) -> None:
  for field in fields:
    (number,) = numbers(config, field)
    if not 0 < number < math.inf:
      raise UserError(f"config.{field}={number}: must be positive")


def check_range(config: ConfigDict, field: str, low: float, high: float) -> None:
  if not all(low <= number <= high for number in numbers(config, field)):
    raise UserError(f"config.{field}={get(config, field)}: must lie in [{low}, {high}]")


def check_smallest_and_largest(config: ConfigDict, field: str) -> None:
  values = numbers(config, field)
  if len(values) != 2 or values[0] > values[1]:
    raise UserError(f"config.{field}={get(config, field)}: give the smallest and the largest")
  if values[0] <= 0:  # sizes are drawn on a logarithmic scale
    raise UserError(f"config.{field}={get(config, field)}: the smallest must be above 0")


def check_average(config: ConfigDict) -> None:
  """Checks the average of the weights, and that it exists where it is to be scored."""
  for field in ("ema.decay", "ema.initial_share"):
    if not 0 <= numbers(config, field)[0] < 1:
      raise UserError(f"config.{field}={get(config, field)}: must lie in [0, 1); 0 = off")
  if share := config.ema.initial_share:
    if not config.pretrained:
      raise UserError(
        f"config.ema.initial_share={share}: random initial weights are worth nothing in an average;"
        " set config.pretrained, or this to 0"
      )
    for field in ("ema.decay", "lora.rank"):
      if get(config, field):
        raise UserError(
          f"config.ema.initial_share={share} does not go with config.{field}; set one of them to 0"
        )
  if config.eval.weights != "raw" and not ema.is_on(config.ema):
    raise UserError(
      f"config.eval.weights={config.eval.weights} needs an average: set config.ema.initial_share or"
      " ema.decay"
    )


def check_trainable(config: ConfigDict) -> None:
  """Checks freezing, LoRA, the average of the weights and the learnable temperature."""
  for tower in trainable.TOWERS:
    num_blocks = config.freeze[f"{tower}_blocks"]
    if num_blocks < trainable.WHOLE_TOWER:
      whole = f"{trainable.WHOLE_TOWER} for the whole tower"
      raise UserError(f"config.freeze.{tower}_blocks={num_blocks}: give a number, or {whole}")
  matrices = config.lora.matrices
  known = tuple(lora.MATRICES)
  if not matrices or any(matrices.count(m) > 1 or m not in known for m in matrices):
    raise UserError(f"config.lora.matrices={matrices}: give some of {', '.join(known)}, each once")
  check_average(config)
  low, high = learnable_temperature.MIN_TEMPERATURE, learnable_temperature.MAX_TEMPERATURE
  if config.loss.learnable_temperature and not low <= config.loss.temperature <= high:
    raise UserError(
      f"config.loss.temperature={config.loss.temperature}: a learnable temperature lies in"
      f" [{low}, {high}]"
    )


def check_start_epochs(config: ConfigDict) -> None:
  """Checks that nothing starts before it can."""
  anchors = config.global_association.start_epoch
  for group in ("local_association", "global_association"):
    epoch = config[group].start_epoch
    if epoch < 1:
      raise UserError(f"config.{group}.start_epoch={epoch}: epochs are counted from 1")
  if _mines_globally(config) and anchors < _FIRST_GLOBAL_EPOCH:
    raise UserError(
      f"config.global_association.start_epoch={anchors}: the bank is filled during epoch 1, so"
      " global association can start in epoch 2 at the earliest"
    )


def never_starting(config: ConfigDict) -> list[str]:
  """Sentences about what the run is too short for, as one that tries out a config may be."""
  weights, num_epochs = config.loss.weights, config.num_epochs
  local, anchors = config.local_association.start_epoch, config.global_association.start_epoch
  names = [name for name in ("local", "consistency") if weights[name]]
  late = []
  if names and local > num_epochs:
    losses = f"{names[0]} loss starts" if len(names) == 1 else f"{' and '.join(names)} losses start"
    late.append(("local", local, f"the {losses}"))
  if weights["global"] and anchors > num_epochs:
    late.append(("global", anchors, "the global loss starts"))
  if config.caption_exchange.prob and anchors + 1 > num_epochs:  # an epoch after the first search
    late.append(("global", anchors, "captions are exchanged"))
  return [
    f"config.{group}_association.start_epoch={epoch}: the run ends before {what}, since"
    f" config.num_epochs={num_epochs}"
    for group, epoch, what in late
  ]


def check_local_relations_are_mined(config: ConfigDict) -> None:
  """Refuses a threshold on local relations in a run that mines none."""
  stds = config.strict_mining.local_threshold_num_stds
  if stds and not _mines_locally(config):
    raise UserError(
      f"config.strict_mining.local_threshold_num_stds={stds}: needs local relations, which are"
      " mined only if config.local_association.modality is not none and one of"
      " config.loss.weights.local and .consistency is above 0; leave it at 0, or change those"
    )


def check_neighbours_are_mined(config: ConfigDict) -> None:
  """Refuses settings that judge mined neighbours in a run that mines none."""
  if _mines_globally(config):
    return
  strict = ("reciprocal", "require_text_match", "global_threshold_num_stds")
  fields = [f"strict_mining.{name}" for name in strict if config.strict_mining[name]]
  if config.bank.gate == "neighbours":
    fields.append("bank.gate")
  if fields:
    raise UserError(
      f"config.{fields[0]}={get(config, fields[0])}: needs mined neighbours, which are searched for"
      " only if config.loss.weights.global or config.caption_exchange.prob is above 0; raise one of"
      " them, or leave this setting at its default"
    )


def check_caption_exchange(config: ConfigDict) -> None:
  """Refuses what would take an exchanged caption, a neighbour's, for the pair's own.

  Such a caption agrees with the neighbour that it is from, so it would confirm any mistake. Local
  relations of both modalities are allowed: without similar images a caption relates nothing.
  """
  prob = config.caption_exchange.prob
  if not prob:
    return
  refused = {
    "global_association.anchor": ("text", "both"), "strict_mining.require_text_match": (True,),
    "bank.gate": tuple(gate for gate in confidence_gate.GATES if gate != "off"),
  }  # fmt: skip
  if _mines_locally(config):
    refused["local_association.modality"] = ("text",)
  defaults = {"strict_mining.require_text_match": False, "bank.gate": "off"}
  for field, values in refused.items():
    value = get(config, field)
    if value in values:
      raise UserError(
        f"config.caption_exchange.prob={prob}: config.{field}={value} needs each pair's own"
        f" caption; set it to {defaults.get(field, 'image')}, or the probability to 0"
      )


def _mines_locally(config: ConfigDict) -> bool:
  weights = config.loss.weights
  is_used = weights["local"] or weights["consistency"]
  return bool(is_used) and config.local_association.modality != "none"


def _mines_globally(config: ConfigDict) -> bool:
  return mining.searches_bank(config.loss.weights["global"], config.caption_exchange.prob)
