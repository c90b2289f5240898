import json

import pytest

from dgia_jax import config as config_lib
from tests.helpers.settings import changed, leaves


def test_default_passes_its_check():
  config_lib.check(config_lib.base())


def test_unknown_field_is_an_error():
  """A misspelt field in a config file must not become a new field that nobody reads."""
  config = config_lib.base()
  with pytest.raises(AttributeError, match="num_epoch"):
    config.num_epoch = 3
  with pytest.raises(AttributeError, match="treshold"):
    config.local_association.treshold = 0.5


def test_differences_are_named_and_sorted():
  base = config_lib.base()
  assert config_lib.differences(base, config_lib.base()) == []
  other = changed(seed=7, loss__weights__local=0.5, augment__erase_area=(0.02, 0.5))
  expected = ["augment.erase_area", "loss.weights.local", "seed"]
  assert config_lib.differences(base, other) == expected
  assert config_lib.differences(other, base) == expected


def test_differences_of_a_config_read_back_from_json():
  """JSON turns tuples into lists, which is no difference."""
  base = config_lib.base()
  stored = json.loads(json.dumps(base.to_dict()))
  assert stored["dataset"]["image_size"] == [384, 128]
  assert config_lib.differences(base, stored) == []
  stored["dataset"]["image_size"] = [384, 192]
  del stored["optimizer"]["epsilon"]  # as a release without it would write: then it has its default
  stored["model"]["gone"] = True
  assert config_lib.differences(base, stored) == ["dataset.image_size", "model.gone"]


def test_differences_ignore_where_and_how_a_run_runs():
  moved = changed(
    mesh__fsdp=4, mesh__data=2, log_every_steps=1, dataset__data_dir="/x", dataset__source="/y",
    dataset__workers=0, gradient_accumulation=2, checkpoint__keep=9, checkpoint__every_steps=3,
  )  # fmt: skip
  assert config_lib.differences(config_lib.base(), moved) == []
  # Every other field is a difference.
  base, names = config_lib.base().to_dict(), list(leaves(config_lib.base()))
  ignored = {name for name in names if not config_lib.differences(base, _without(base, name))}
  runtime = {name for name in names if name.split(".")[0] in ("mesh", "checkpoint", "wandb")}
  runtime |= {"log_every_steps", "gradient_accumulation"}
  runtime |= {"dataset.data_dir", "dataset.source", "dataset.workers", "model.attention"}
  runtime |= {"dataset.annotations", "dataset.images", "model.remat", "model.pack_captions"}
  runtime |= {"model.full_last_block"}
  runtime |= {"eval.batch_size", "eval.before_training", "eval.contact_sheet"}
  runtime |= {f"eval.test_time.{name}" for name in config_lib.base().eval.test_time}
  runtime |= {"profile.steps", "profile.start_step"}
  # An empty group holds nothing to differ in.
  assert ignored == runtime | {"dataset.options"}


def _without(tree, name):
  """A copy of nested dicts in which the field `name` holds another value."""
  head, _, rest = name.partition(".")
  return tree | {head: _without(tree[head], rest) if rest else {} if tree[head] == {} else "other"}


def test_runtime_fields_exist():
  names = list(leaves(config_lib.base()))
  for field in config_lib.RUNTIME_FIELDS:
    assert any(name == field or name.startswith(f"{field}.") for name in names), field
