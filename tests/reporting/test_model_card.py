"""A model card says what the run says, and nothing when nothing is known."""

import json

from dgia_jax import config, convert
from dgia_jax.reporting import model_card
from dgia_jax.training import workdir as workdir_lib

SCORES = {"R1": 30.0, "R5": 50.126, "R10": 60.0, "mAP": 33.0, "mINP": 20.0}


def make(results):
  settings = config.base().to_dict()
  return model_card.make_card("a title", settings, 7, 1234567, 512, 77, results)


def test_it_is_filled_from_config_and_results():
  results = {
    "split": "test", "dataset": "cuhk_pedes", "queries": 6156, "gallery": 3074,
    "last": {"step": 9, "epoch": 3, "t2i": SCORES, "i2t": SCORES},
    "best": {"step": 7, "epoch": 2, "selected_on": "val", "t2i": SCORES, "i2t": SCORES},
  }  # fmt: skip
  card = make(results)
  assert card.startswith("---\n") and "# a title" in card and "1,234,567 parameters" in card
  assert "384 x 128" in card and "epoch 2, chosen on val" in card and "6,156 captions" in card
  assert "| text to image | 30.00 | 50.13 | 60.00 | 33.00 | 20.00 |" in card
  assert "{" not in card
  assert "not evaluated" in make(results | {"best": {}, "last": {"step": 8}}) and "30.00" in card
  assert "not evaluated" in make(None) and "30.00" not in make(None)
  for duty in ("consent", "ethics board", "identifying, tracking"):
    assert duty in card


def test_a_card_tells_no_folders_of_the_machine_it_was_made_on(tmp_path):
  def start(pretrained):
    settings = config.base().to_dict() | {"pretrained": pretrained}
    card = model_card.make_card("a title", settings, 7, 1, 512, 77)
    return next(line for line in card.splitlines() if "started from" in line)

  assert start("") == "| started from | random weights |"
  assert start("openai/clip-vit-base-patch16").endswith("| `openai/clip-vit-base-patch16` |")
  for folder in (tmp_path / "warm", "/gone/since/warm", "runs/many/warm"):
    assert start(str(folder)) == "| started from | `warm` |"


def test_convert_writes_it(known_run, tmp_path):
  convert.convert(known_run, tmp_path / "out", "last")
  card = (tmp_path / "out" / convert.CARD).read_text()
  run = json.loads((known_run / workdir_lib.CONFIG).read_text())
  assert f"`{run['dataset']['name']}`" in card and "step 2" in card and "64 x 32" in card
  assert "16 tokens" in card and "64 numbers" in card and "not evaluated" in card
