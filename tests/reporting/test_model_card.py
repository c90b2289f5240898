"""A model card states what the run's config and results state, and nothing else."""

import json
import pathlib
import re
import shutil

import huggingface_hub
import pytest

from dgia_jax import config, convert
from dgia_jax.reporting import model_card
from dgia_jax.training import workdir as workdir_lib

SCORES = {"R1": 30.0, "R5": 50.126, "R10": 60.0, "mAP": 33.0, "mINP": 20.0}
RESULTS = {
  "split": "test", "dataset": "cuhk_pedes", "queries": 6156, "gallery": 3074,
  "last": {"step": 9, "epoch": 3, "t2i": SCORES, "i2t": SCORES},
  "best": {"step": 7, "epoch": 2, "selected_on": "val", "t2i": SCORES, "i2t": SCORES},
}  # fmt: skip


def create(
  results=None,
  dataset="cuhk_pedes",
  pretrained="",
  model="vit_b_16",
  size=(384, 128),
  form=None,
  run=pathlib.Path("/gone/run"),
  weights="raw",
):
  settings = config.base().to_dict() | {"pretrained": pretrained}
  settings["dataset"] = settings["dataset"] | {"name": dataset, "image_size": size}
  settings["model"] = settings["model"] | {"name": model}
  return model_card.create(
    settings,
    run=run,
    step=7,
    num_parameters=1234567,
    feature_width=512,
    context_length=77,
    results=results,
    weights=weights,
    **({"form": form} if form else {}),
  )


def test_the_text_is_filled_in_from_config_and_results():
  card = str(create(RESULTS))
  assert "# vit_b_16 on cuhk_pedes" in card and "1,234,567 parameters" in card
  assert "384 x 128" in card and "epoch 2, chosen on val" in card and "6,156 captions" in card
  assert "| text to image | 30.00 | 50.13 | 60.00 | 33.00 | 20.00 |" in card
  assert "measured on `cuhk_pedes` only" in card and "{" not in card.replace('"{}"', "")
  for duty in ("consent", "ethics board", "identify, track"):
    assert duty in card


@pytest.mark.parametrize("results", [None, RESULTS | {"best": {}, "last": {"step": 8}}])
def test_a_checkpoint_without_scores_is_called_not_evaluated(results):
  card = create(results)
  assert "not evaluated" in card.text and "measured on no dataset" in card.text
  assert "30.00" not in card.text and card.data.eval_results is None


def of(weights, value):
  """RESULTS whose scores are of these weights."""
  scores = {"weights": weights, "t2i": SCORES | {"R1": value}}
  return {name: RESULTS[name] | scores for name in ("last", "best")}


@pytest.mark.parametrize(
  "results, raw, ema",
  [
    (of("raw", 31.0), "31.00", None),
    (of("ema", 41.0), None, "41.00"),
    # The average was scored beside the weights as trained.
    (of("raw", 31.0) | {"ema": of("ema", 41.0)}, "31.00", "41.00"),
    # Earlier releases did not say which weights they scored.
    ({"ema": {"best": RESULTS["best"] | {"t2i": SCORES | {"R1": 41.0}}}}, "30.00", "41.00"),
  ],
)
def test_scores_are_those_of_the_weights_that_were_converted(results, raw, ema):
  for weights, expected in (("raw", raw), ("ema", ema)):
    text = create(RESULTS | results, weights=weights).text
    if expected:
      assert f"| text to image | {expected} |" in text
    else:
      assert "not evaluated" in text


def test_the_hub_can_read_the_metadata():
  data = huggingface_hub.ModelCard(str(create(RESULTS, pretrained="openai/clip"))).data
  assert data.base_model == "openai/clip" and data.datasets == "cuhk_pedes"
  assert data.library_name == "transformers" and data.license == "other"
  scores = {(result.task_type, result.metric_name): result for result in data.eval_results}
  assert len(scores) == 10
  result = scores["text-to-image-retrieval", "R@5"]
  assert (result.metric_value, result.dataset_split) == (50.13, "test")


@pytest.mark.parametrize(
  "dataset, pretrained, terms",
  [
    ("synth_pedes", "", "Apache-2.0"),
    ("synth_pedes", "mini", "Apache-2.0"),
    ("synth_pedes", "openai/clip", "the terms of `openai/clip`"),
    ("cuhk_pedes", "openai/clip", "the terms of `cuhk_pedes` and of `openai/clip`"),
    ("custom", "", "the terms of the training data"),
  ],
)
def test_our_licence_covers_only_weights_without_other_sources(
  shipped_mini, dataset, pretrained, terms
):
  card = create(dataset=dataset, pretrained=pretrained)
  assert f"| licence of the weights | {terms}" in card.text
  is_ours = terms == "Apache-2.0"
  assert card.data.license == ("apache-2.0" if is_ours else "other")
  # The hub asks other licences for a name.
  assert card.data.license_name == (None if is_ours else "terms-of-data-and-initial-weights")


@pytest.mark.parametrize("size", [(384, 128), (224, 224)])
def test_the_pipeline_is_named_only_where_it_works_without_a_flag(size):
  card = create(size=size)
  is_square = size[0] == size[1]
  assert (card.data.pipeline_tag == "zero-shot-image-classification") == is_square
  assert ("model.forward = functools.partial" in card.text) != is_square
  assert 'pipeline("zero-shot-image-classification", model=FOLDER)' in card.text


@pytest.mark.parametrize("form", convert.FORMATS)
def test_a_card_shows_how_its_format_is_used(form):
  card = create(form=form, size=(384, 128))
  assert card.data.library_name == form
  assert card.data.pipeline_tag == "feature-extraction"
  assert ("AutoModel" in card.text) == (form == "transformers")
  assert (f"image_encoder.{form}" in card.text) == (form != "transformers")
  assert 'padding="max_length", max_length=77' in card.text and "cleans captions" in card.text
  for code in re.findall("```python\n(.*?)```", card.text, re.DOTALL):
    compile(code, "card", "exec")


def test_the_tags_name_the_family():
  assert create().data.tags[0] == "clip" and create(model="siglip_b_16").data.tags[0] == "siglip"


def test_captions_of_a_program_are_not_attributed_to_people():
  drawn, written = (create(dataset=name).text for name in ("synth_pedes", "cuhk_pedes"))
  assert "composed their captions" in drawn and "come from the captions of" not in drawn
  assert "come from the captions of `cuhk_pedes`" in written and "A program" not in written
  assert "neither from photographs nor" in drawn
  warm = create(dataset="synth_pedes", pretrained="openai/clip").text
  assert "composed their captions" in warm and "neither from photographs" not in warm


def test_a_card_contains_no_paths_of_the_machine(shipped_mini, tmp_path):
  def start(pretrained):
    card = create(pretrained=pretrained)
    assert card.data.base_model == (pretrained if pretrained == "openai/clip" else None)
    return next(line for line in card.text.splitlines() if "initial weights" in line)

  assert start("") == "| initial weights | random weights |"
  assert start("openai/clip") == "| initial weights | `openai/clip` |"
  assert start("mini") == "| initial weights | `mini` |"
  for folder in (tmp_path / "warm", "/gone/since/warm", "runs/many/warm", "~/warm", "../warm"):
    assert start(str(folder)) == "| initial weights | `warm` |"


def test_a_path_that_looks_like_a_hub_name_is_found_from_the_run(tmp_path):
  (tmp_path / "runs" / "first").mkdir(parents=True)
  for place, expected in (("runs", None), ("other/runs", None)):
    card = create(pretrained="runs/first", run=tmp_path / place / "second")
    assert card.data.base_model is expected and "| initial weights | `first` |" in card.text
  card = create(pretrained="runs/first", run=pathlib.Path("/gone/runs/second"))
  assert card.data.base_model == "runs/first"


def test_a_card_shows_the_options_of_the_dataset_and_the_notes_of_the_author(
  known_run, tmp_path, capsys
):
  run = tmp_path / "run"
  shutil.copytree(known_run, run)
  settings = json.loads((run / workdir_lib.CONFIG).read_text())
  settings["dataset"]["options"] = {"seed": 11, "people": 9}
  (run / workdir_lib.CONFIG).write_text(json.dumps(settings))
  (tmp_path / "notes.md").write_text("## Zero-shot scores\n\nNone yet: {R1}.\n")
  notes = ["--notes", str(tmp_path / "notes.md")]
  arguments = ["--run", str(run), "--out", str(tmp_path / "out")]
  assert convert.main([*arguments, *notes]) == 0
  card = (tmp_path / "out" / convert.CARD).read_text()
  assert f"| training | `{settings['dataset']['name']}` (`people=9, seed=11`), " in card
  assert "\n\n## Zero-shot scores\n\nNone yet: {R1}.\n\n## Scores\n" in card
  capsys.readouterr()
  assert convert.main([*arguments, "--notes", str(tmp_path / "gone.md")]) == 2
  assert "error: --notes=" in capsys.readouterr().err


def test_the_card_of_an_oracle_does_not_claim_weak_supervision(known_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(known_run, run)
  texts = []
  for use in ("", "oracle relations"):
    if use:
      (run / workdir_lib.LABELS_FILE).write_text(f"{use}\n")
    convert.convert(run, tmp_path / "out")
    assert model_card.is_ours(tmp_path / "out" / convert.CARD)
    texts.append((tmp_path / "out" / convert.CARD).read_text())
  plain, oracle = texts
  assert "**without identity labels**" in plain and "It was trained without knowing" in plain
  assert "**with identity labels** (oracle relations): an upper bound" in oracle
  assert "**without identity labels**" not in oracle and "trained without knowing" not in oracle


def test_convert_writes_a_card(known_run, tmp_path):
  convert.convert(known_run, tmp_path / "out", "last")
  card = (tmp_path / "out" / convert.CARD).read_text()
  run = json.loads((known_run / workdir_lib.CONFIG).read_text())
  assert f"`{run['dataset']['name']}`" in card and "step 2" in card and "64 x 32" in card
  assert "16 tokens" in card and "64 numbers" in card and "not evaluated" in card
