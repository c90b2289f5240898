"""Names of earlier releases, in one place: older runs still open and older calls still work."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dgia_jax.errors import UserError

# Settings that were renamed in 0.2.0: old dotted name -> new one.
RENAMED_SETTINGS = {
  "augment.erase": "augment.erase_prob",
  "augment.flip": "augment.flip_prob",
  "bank.gated": "bank.gate",
  "bank.momentum": "bank.update_rate",
  "global_association.agreement": "strict_mining.require_text_match",
  "global_association.deviations": "strict_mining.global_threshold_num_stds",
  "global_association.mutual": "strict_mining.reciprocal",
  "global_association.rows": "global_association.loss_over",
  "local_association.deviations": "strict_mining.local_threshold_num_stds",
  "local_association.softening": "local_association.relation_label",
  "optimizer.bias_rate": "optimizer.bias_lr_multiplier",
  "optimizer.rate_per": "optimizer.lr_update",
}
# Renamed settings whose values changed, too: new name -> {old value: new one}.
RENAMED_VALUES: dict[str, dict] = {"bank.gate": {False: "off", True: "pair"}}
# Settings that were removed in 0.2.0, with the value that switched them off.
REMOVED_SETTINGS = {
  "bank.features": "student",
  "global_association.consult_batch": False,
  "global_association.soft_scale": 1.0,
  "global_association.weights": "confidence",
  "loss.itc_spares_relations": False,
  "sampling.group": 1,
  "sampling.start_epoch": None,  # of no effect while sampling.group is 1
}
# Settings that runs of 0.1 did not have, where their behaviour was not today's default.
BEHAVIOUR_BEFORE: dict[str, Any] = {"dataset.resize": "bicubic"}


def current_config(config: dict) -> dict:
  """The config of a run of an earlier release under today's names.

  Args:
    config: content of its config.json; returned as a copy.

  Raises:
    UserError: the run uses an option that was removed.
  """
  config = copy.deepcopy(config)
  for name, neutral in REMOVED_SETTINGS.items():
    value = _pop(config, name)
    if neutral is not None and value not in (None, neutral):
      raise UserError(
        f"the run was started with config.{name}={value}, which release 0.2.0 removed: open it"
        " with release 0.1"
      )
  for old, new in RENAMED_SETTINGS.items():
    value = _pop(config, old)
    if value is not None:
      _put(config, new, RENAMED_VALUES[new].get(value, value) if new in RENAMED_VALUES else value)
  for name, value in BEHAVIOUR_BEFORE.items():
    _put(config, name, value)
  return config


def current_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint of an earlier release under today's names.

  They stacked a tower's last block with the others.
  """
  if any("/last_block/" in name for name in arrays):
    return dict(arrays)
  current = {}
  for name, array in arrays.items():
    if "/blocks/" in name:
      current[name] = array[:-1]
      current[name.replace("/blocks/", "/last_block/")] = array[-1]
    else:
      current[name] = array
  return current


def _pop(config: dict, dotted: str) -> Any:
  """Removes a field and returns its value, None without it; a group left empty is removed too."""
  *parents, name = dotted.split(".")
  group = config
  for parent in parents:
    group = group.get(parent)
    if not isinstance(group, dict):
      return None
  value = group.pop(name, None)
  if len(parents) == 1 and not group:
    del config[parents[0]]
  return value


def _put(config: dict, dotted: str, value: Any) -> None:
  """Sets a field that the config does not have yet."""
  *parents, name = dotted.split(".")
  group = config
  for parent in parents:
    group = group.setdefault(parent, {})
  group.setdefault(name, value)


def accepts_older_names(**renamed: str) -> Callable:
  """Lets a public function take keyword arguments by their names of release 0.1 as well.

  Args:
    **renamed: old name -> new one.
  """

  def decorate(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
      return function(*args, **{renamed.get(name, name): kwargs[name] for name in kwargs})

    return call

  return decorate
