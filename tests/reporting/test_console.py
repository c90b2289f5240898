import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.reporting import console as consoles
from dgia_jax.reporting import stored_scores

SCORES = {"R1": 41.25, "R5": 70.0, "R10": 80.5, "mAP": 35.0, "mINP": 100.0}
BOTH = {"t2i": SCORES, "i2t": {**SCORES, "R1": 50.0}}
VALUES = {
  "loss": 3.21, "loss_itc": 1.1, "loss_local": 0.7, "loss_global": 0.62, "loss_consistency": 0.79,
  "local_precision": 41.3, "global_precision": 22.0, "pairs_per_second": 1234.4,
}  # fmt: skip


CHANCE = {"t2i": 0.25, "i2t": 0.5}


def everything(console):
  """Calls every method of the console."""
  pairs = types.SimpleNamespace(
    num_images=1200, num_pairs=2400, person_of_image_M=np.repeat(np.arange(300), 4)
  )
  console.dataset_summary("synth_pedes", {"train": pairs}, (64, 32))
  console.parameter_overview({"image": {"blocks": {"a": jnp.zeros((2, 500)), "b": jnp.zeros(24)}}})
  with console.training(steps_per_epoch=125, num_epochs=8) as progress:
    progress.advance(249)
    progress.advance(250)
    progress.report(250, VALUES, seconds_left=125.4)
    console.evaluation("val, epoch 2", BOTH, CHANCE, unmatched=3)
  console.final("test", {"last": {"epoch": 8, **BOTH}})
  console.outcome({"results.json": "scores"}, "python -m dgia_jax.main --mode evaluate")


def shown(call):
  out = io.StringIO()
  call(consoles.Console(file=out))
  return out.getvalue()


def rows(text):
  """Lines as lists of words."""
  return [line.split() for line in text.splitlines()]


def test_training_prints_plain_lines_where_there_is_no_terminal():
  def train(console):
    with console.training(steps_per_epoch=125, num_epochs=8) as progress:
      for step in range(1, 251):
        progress.advance(step)
      progress.report(250, VALUES, seconds_left=125.4)
      progress.report(251, {"loss": 3.0, "local_precision": None})

  assert shown(train) == (
    "epoch 2/8  step 250/1,000  loss 3.21 (itc 1.10 local 0.70 global 0.62 consistency 0.79)"
    "  precision local 41% global 22%  1,234 pairs/s  2:05 left\n"
    "epoch 3/8  step 251/1,000  loss 3.00\n"
  )


def test_clock():
  times = [consoles.clock(seconds) for seconds in (0.4, 59.6, 125.0, 3600.0, 36001.0)]
  assert times == ["0:00", "1:00", "2:05", "1:00:00", "10:00:01"]


def test_dataset_summary_counts_persons():
  text = shown(everything)
  assert "synth_pedes: images of 64 x 32 pixels (height x width)" in text
  assert ["train", "1,200", "2,400", "300"] in rows(text)


def test_parameters_are_listed_with_their_total():
  params = {
    "image": {"blocks": {"a": jnp.zeros((12, 100)), "b": jnp.zeros((12, 3), jnp.bfloat16)}},
    "text": jnp.zeros((1000, 1000)),
  }
  text = shown(lambda console: console.parameter_overview(params))
  lines = [line.replace("|", " ").split() for line in text.splitlines()]
  assert ["image/blocks/a", "(12,", "100)", "float32", "1,200"] in lines
  assert ["text", "(1000,", "1000)", "float32", "1,000,000"] in lines
  assert "Total: 1,001,236 -- 4,004,872 bytes" in text


def test_the_sharding_of_split_parameters_is_listed():
  mesh = sharding.create_mesh(data=1, fsdp=8)
  text = jax.device_put(jnp.zeros((16, 4)), jax.NamedSharding(mesh, jax.P("fsdp")))
  shown_text = shown(lambda console: console.parameter_overview({"text": text}))
  assert ["text", "(16,", "4)", "float32", "64", "('fsdp',)"] in [
    line.replace("|", " ").split() for line in shown_text.splitlines()
  ]


def test_scores_of_both_directions_and_models():
  best = {"epoch": 6, "selected_on": "val", **BOTH}
  results = {"last": {"epoch": 8, **BOTH}, "best": best, "chance_R1": CHANCE}
  text = shown(lambda console: console.final("test", results))
  assert ["R@1", "R@5", "R@10", "mAP", "mINP", "R@1", "by", "chance"] in rows(text)
  to_image = ["text", "to", "image", "41.25", "70.00", "80.50", "35.00", "100.00", "0.25"]
  to_text = ["image", "to", "text", "50.00", "70.00", "80.50", "35.00", "100.00", "0.50"]
  assert rows(text).count(to_image) == rows(text).count(to_text) == 2
  assert text.index("results on test, epoch 8 (last)") < text.index("epoch 6 (best on val)")

  text = shown(lambda console: console.evaluation("val, epoch 3", BOTH, unmatched=2))
  assert text.startswith("val, epoch 3\n")
  assert "2 queries without a correct item" in text and "chance" not in text
  text = shown(lambda console: console.evaluation("val", BOTH, CHANCE))
  assert to_image in rows(text) and "without" not in text


def test_corrected_scores_stand_below_the_plain_ones():
  corrected = {"reranked": {**BOTH["t2i"], "R1": 43.5}, "smoothed": BOTH["t2i"]}
  last = {"epoch": 8, **BOTH, "test_time": corrected}
  # The same epoch is the best on test, whose record knows no corrections.
  by_split = {"test": {"epoch": 8, "selected_on": "test", **BOTH}}
  results = {"last": last, "chance_R1": CHANCE, "best_by_split": by_split}
  text = shown(lambda console: console.final("test", results))
  names = [line.split()[:2] for line in text.splitlines()]
  place = names.index(["text", "to"])
  assert rows(text)[place + 1] == "re-ranked 43.50 70.00 80.50 35.00 100.00 0.25".split()
  assert names[place + 2 : place + 4] == [["gallery", "smoothed"], ["image", "to"]]
  assert max(map(len, text.splitlines())) <= 80


def test_scores_before_training_come_first():
  before = {"epoch": 0, "step": 0, **BOTH}
  results = {"last": {"epoch": 8, **BOTH}, "before_training": before}
  text = shown(lambda console: console.final("test", results))
  assert text.index("results on test, epoch 0 (before training)") < text.index("epoch 8 (last)")


def test_scores_beside_stored_ones():
  scores = {"R1": [19.0, 20.0, 21.0], "mAP": [21.0, 21.0, 24.0]}
  stored = [stored_scores.StoredScores("baseline", "python -m train", [0, 1, 4], scores)]
  own = {"R1": 20.5, "mAP": 22.25, "R5": 50.0}
  text = shown(lambda console: console.comparison("test, last epoch", own, stored))
  assert text.startswith("text to image on test, last epoch; mean ")
  (row,) = (line.split() for line in text.splitlines() if "3 seeds" in line)
  assert " ".join(row) == "baseline, stored: 3 seeds 20.00 ± 1.00 22.00 ± 1.73"
  assert ["this", "run", "20.50", "22.25"] in rows(text)
  assert "baseline, seeds 0, 1, 4: python -m train\n" in text
  assert shown(lambda console: console.comparison("test", own, [])) == ""


def test_an_epoch_that_is_last_and_best_is_shown_once():
  best = {"epoch": 8, "selected_on": "val", **BOTH}
  on_test = {"epoch": 8, "selected_on": "test", **BOTH}
  results = {"last": {"epoch": 8, **BOTH}, "best": best, "best_by_split": {"test": on_test}}
  text = shown(lambda console: console.final("test", results))
  assert text.count("text to image") == 1
  assert "results on test, epoch 8 (last, best on val, best on test)" in text


def test_text_that_a_terminal_cannot_show_is_replaced():
  out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  console = consoles.Console(file=out)
  everything(console)
  console.print("a caf\u00e9 \x1b[2Jand\x07 a tab\t.")
  out.flush()
  text = out.buffer.getvalue().decode("ascii")
  assert r"a caf? \x1b[2Jand\x07 a tab" in text and "41.25" in text


def test_long_lines_and_brackets_stay_as_they_are():
  path, command = "/a/[bold]/" + "long/" * 40, "python -m dgia_jax.main " + "--flag [x] " * 30
  text = shown(lambda console: console.outcome({path: "all :smile: results"}, command.strip()))
  assert f"  {path}  all :smile: results\n" in text
  assert f"  {command.strip()}\n" in text


def test_other_processes_print_nothing(capsys):
  out = io.StringIO()
  everything(consoles.Console(active=False, file=out))
  assert out.getvalue() == ""
  everything(consoles.Console(active=False))
  assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind, live", [("xterm-256color", True), ("dumb", False)])
def test_a_terminal_gets_a_live_bar(monkeypatch, kind, live):
  monkeypatch.setenv("TERM", kind)
  monkeypatch.setenv("TTY_COMPATIBLE", "1")  # makes rich take a plain file for a terminal
  text = shown(everything)
  assert "epoch 2/8" in text and "consistency 0.79" in text
  assert ("step 250/1,000" in text) != live  # the bar shows the step
  assert ("\x1b[?25l" in text) == live  # the cursor is hidden while the bar moves
