"""Runs of release 0.1 still open: their settings are found under today's names."""

import pytest

from dgia_jax import config as config_lib
from dgia_jax import older_names
from dgia_jax.errors import UserError


def config_of_release_0_1():
  """The released recipe as release 0.1 wrote it, as far as names have changed since."""
  config = config_lib.base().to_dict()
  del config["strict_mining"], config["dataset"]["resize"], config["bank"]["gate"]
  for old, new in older_names.RENAMED_SETTINGS.items():
    if not new.startswith(("strict_mining", "bank.gate")):
      (new_group, new_name), (old_group, old_name) = new.split("."), old.split(".")
      config[old_group][old_name] = config[new_group].pop(new_name)
  config["bank"]["gated"] = False
  for group in ("local_association", "global_association"):
    config[group]["deviations"] = 0.0
  config["global_association"] |= {"agreement": False, "mutual": False}
  config["global_association"] |= {"consult_batch": False, "soft_scale": 1.0}
  config["loss"]["itc_spares_relations"] = False
  config["sampling"] = {"group": 1, "start_epoch": 2}
  return config


def test_an_older_config_differs_in_nothing_but_the_resize_filter():
  older = config_of_release_0_1()
  current = older_names.current_config(older)
  assert config_lib.differences(config_lib.base(), current) == ["dataset.resize"]
  assert current["dataset"]["resize"] == "bicubic"  # the only one that release 0.1 had
  assert older["bank"]["momentum"] == 0.9, "the argument was changed"


def test_changed_settings_keep_their_values():
  older = config_of_release_0_1()
  older["bank"]["momentum"], older["augment"]["erase"] = 0.4, 0.1
  older["global_association"]["mutual"] = True
  older["local_association"]["deviations"] = 2.5
  current = older_names.current_config(older)
  assert current["bank"]["update_rate"] == 0.4 and current["augment"]["erase_prob"] == 0.1
  assert current["strict_mining"]["reciprocal"] is True
  assert current["strict_mining"]["local_threshold_num_stds"] == 2.5


@pytest.mark.parametrize("gated, gate", [(False, "off"), (True, "pair")])
def test_the_gate_of_older_runs_is_that_of_the_pair(gated, gate):
  older = config_of_release_0_1()
  older["bank"]["gated"] = gated
  current = older_names.current_config(older)
  assert current["bank"]["gate"] == gate and "gated" not in current["bank"]


def test_todays_config_stays_as_it_is():
  today = config_lib.base().to_dict()
  assert older_names.current_config(today) == today


@pytest.mark.parametrize(
  "name, value",
  [
    ("sampling.group", 4),
    ("loss.itc_spares_relations", True),
    ("global_association.soft_scale", 2),
  ],
)
def test_a_run_with_a_removed_option_is_refused_in_one_line(name, value):
  older = config_of_release_0_1()
  group, field = name.split(".")
  older[group][field] = value
  with pytest.raises(UserError, match=f"config.{name}={value}.*release 0.1"):
    older_names.current_config(older)


def test_todays_names_exist():
  leaves = config_lib.base()
  for new in older_names.RENAMED_SETTINGS.values():
    group, field = new.split(".")
    assert field in leaves[group], new
