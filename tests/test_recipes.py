import ast
import importlib

import pytest

from dgia_jax import config as config_lib
from dgia_jax import recipes
from dgia_jax.errors import UserError
from tests.helpers.paths import ROOT
from tests.helpers.settings import leaves

CONFIG_FILES = sorted(
  path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"
)


def variants(file):
  """Every variant in the table that the file's get_config gives to `recipes.vary`, and ""."""
  found = [""]
  for node in ast.walk(ast.parse((ROOT / "configs" / f"{file}.py").read_text())):
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "variants":
      found += [ast.literal_eval(key) for key in node.value.keys]
  return found


def test_the_search_for_variants_finds_some():
  assert {"synth_pedes", "cuhk_pedes", "icfg_pedes", "rstp_reid", "custom"} <= set(CONFIG_FILES)
  assert variants("synth_pedes") == ["", "plus", "scratch", "small"]
  assert variants("icfg_pedes") == ["", "paper", "plus", "strong", "holdout"]
  assert variants("custom") == ["", "plus", "mini", "mini_plus", "tiny", "tiny_plus"]


@pytest.mark.parametrize(
  "file, variant", [(file, variant) for file in CONFIG_FILES for variant in variants(file)]
)
def test_config_file_loads_locked_and_passes_its_check(file, variant):
  get_config = importlib.import_module(f"configs.{file}").get_config
  config = get_config(variant)
  assert config.is_locked
  config_lib.check(config)
  # No field but the free options of a dataset was added.
  known = set(leaves(config_lib.base()))
  assert {name for name in leaves(config) if not name.startswith("dataset.options")} <= known
  if variant:
    assert config_lib.differences(get_config(), config), "the variant changes nothing"


@pytest.mark.parametrize("file", CONFIG_FILES)
def test_unknown_variant_is_one_line_that_names_the_known(file):
  get_config = importlib.import_module(f"configs.{file}").get_config
  with pytest.raises(UserError, match=f"configs/{file}.py.*'nonsense'") as caught:
    get_config("nonsense")
  assert "\n" not in str(caught.value)
  for variant in variants(file)[1:]:
    assert f":{variant}" in str(caught.value)


def test_pod_takes_the_batch_as_its_variant_and_scales_the_rate():
  from configs import pod

  for variant, batch_size in (("", 4096), ("16384", 16384)):
    config = pod.get_config(variant)
    config_lib.check(config)
    assert config.batch_size == batch_size
    assert config.optimizer.learning_rate == pytest.approx(1e-5 * batch_size / 64)
  for variant in ("0", "-64", "64.5"):
    with pytest.raises(UserError, match="configs/pod.py"):
      pod.get_config(variant)


def test_the_embedded_default_fine_tunes_mini_with_the_released_start_epochs():
  from configs import synth_pedes

  released, scratch = config_lib.base(), synth_pedes.get_config("scratch")
  for variant in ("", "plus"):
    config = synth_pedes.get_config(variant)
    assert (config.pretrained, config.model.name, config.tokenizer.name) == ("mini", "mini", "")
    for group in ("local_association", "global_association"):
      start_epoch = config[group].start_epoch
      assert start_epoch == released[group].start_epoch != scratch[group].start_epoch
    assert config.eval.before_training and not config.eval.select_on == "test"
  assert (scratch.pretrained, scratch.model.name) == ("", "tiny")


@pytest.mark.parametrize("file", ["cuhk_pedes", "icfg_pedes", "rstp_reid"])
def test_the_strong_recipe_never_chooses_by_test_scores(file):
  get_config = importlib.import_module(f"configs.{file}").get_config
  plus, strong = get_config("plus"), get_config("strong")
  assert strong.eval.select_on == "val"
  assert strong.optimizer.learning_rate == plus.optimizer.learning_rate / 2
  assert strong.caption_exchange.prob == plus.caption_exchange.prob > 0
  # ICFG-PEDES has no val, so some of its training people become val.
  assert strong.dataset.options.get("holdout", 0) == (310 if file == "icfg_pedes" else 0)


def test_the_papers_recipe_and_released_defaults():
  base = config_lib.base()
  assert (base.loss.itc_reduction, base.global_association.loss_over) == ("mean", "all")
  assert base.augment.mask_first and base.optimizer.epsilon == 1e-3
  paper = recipes.as_in_paper(config_lib.base())
  assert (paper.loss.itc_reduction, paper.global_association.loss_over) == ("sum", "batch")
  assert not paper.augment.mask_first and paper.num_epochs == 40
