"""A run becomes a folder that transformers loads, and comes back."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax import checkpoint, config, convert, memory_bank, run_folder, train_state
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.models import dual_encoder, weights

IMAGE_SIZE = (64, 32)
CAPTIONS = ["a man with a red coat", "A woman wears   BLUE shoes, a bag & a hat", "red, red!"]


def make_model(words, seed):
  return dual_encoder.create(
    "tiny",
    image_size=IMAGE_SIZE,
    context_length=words.context_length,
    vocab_size=words.vocab_size,
    rngs=nnx.Rngs(seed),
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's folder with two checkpoints, of which the first is the best; weights of seed = step."""
  folder = tmp_path_factory.mktemp("run")
  settings = config.base()
  settings.dataset.image_size = IMAGE_SIZE
  settings.tokenizer.name = ""
  settings.loss.temperature = 0.05
  run_folder.claim(folder, settings)
  words = tokenizer_lib.train_tokenizer(CAPTIONS, context_length=16, vocab_size=300)
  words.save(folder / run_folder.TOKENIZER)
  with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
    for step, score in ((1, 5.0), (2, 3.0)):
      state = train_state.TrainState(
        step=jnp.asarray(step),
        params=nnx.to_pure_dict(nnx.state(make_model(words, step), nnx.Param)),
        opt_state=(),
        bank=memory_bank.create(8, 64),
      )
      checkpoints.save(state, {"data_position": step}, score)
    checkpoints.wait()
  return folder


def convert_run(run, out, *more):
  return convert.main(["--run", str(run), "--out", str(out), *more])


@pytest.mark.parametrize("choice, seed", [("best", 1), ("last", 2)])
def test_the_chosen_checkpoint_comes_back(run, tmp_path, capsys, choice, seed):
  assert convert_run(run, tmp_path, "--checkpoint", choice) == 0
  assert f"step {seed}" in capsys.readouterr().out
  words = tokenizer_lib.load_tokenizer(run / run_folder.TOKENIZER)
  expected = nnx.to_pure_dict(nnx.state(make_model(words, seed), nnx.Param))
  loaded = weights.load_pretrained(str(tmp_path), expected, image_size=IMAGE_SIZE)
  for actual, value in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(actual, value, rtol=0, atol=1e-6)


def test_transformers_gives_equal_features_from_raw_captions_and_images(run, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from PIL import Image

  from dgia_jax import views

  assert convert_run(run, tmp_path) == 0
  theirs = transformers.CLIPModel.from_pretrained(tmp_path)
  tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
    CAPTIONS, padding="max_length", truncation=True, return_tensors="pt"
  )
  words = tokenizer_lib.load_tokenizer(run / run_folder.TOKENIZER)
  np.testing.assert_array_equal(tokens["input_ids"].numpy(), words.encode(CAPTIONS))
  pixels = np.random.default_rng(0).integers(0, 256, (2, *IMAGE_SIZE, 3), np.uint8)
  processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
  images = processor([Image.fromarray(image) for image in pixels], return_tensors="pt")
  with torch.no_grad():
    image = theirs.get_image_features(**images, interpolate_pos_encoding=True).pooler_output
    text = theirs.get_text_features(input_ids=tokens["input_ids"]).pooler_output
  assert float(theirs.logit_scale.detach().exp()) == pytest.approx(20)

  ours = make_model(words, seed=1)
  for actual, expected in (
    (image, ours.encode_image(views.normalize_pixels(jnp.asarray(pixels)))),
    (text, ours.encode_text(jnp.asarray(words.encode(CAPTIONS)))),
  ):
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=2e-5 * scale)


def test_a_run_is_left_as_it_was(run, tmp_path):
  before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
  assert convert_run(run, tmp_path) == 0
  assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_without_a_vocabulary_the_weights_are_still_written(run, tmp_path, capsys, monkeypatch):
  assert convert_run(run, tmp_path) == 0
  monkeypatch.setattr(run_folder, "TOKENIZER", "gone")
  assert convert_run(run, tmp_path) == 0
  assert "without a tokenizer" in capsys.readouterr().out
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "config.json", "model.safetensors", "preprocessor_config.json",
  ]  # fmt: skip


def test_mistakes_end_in_one_line(run, tmp_path, capsys):
  assert convert_run(tmp_path, tmp_path / "out") == 2
  assert "holds no run" in capsys.readouterr().err
  (tmp_path / "config.json").write_text(json.dumps(config.base().to_dict()))
  assert convert_run(tmp_path, tmp_path / "out") == 2
  assert "no complete checkpoint" in capsys.readouterr().err
  (tmp_path / "file").write_text("")
  assert convert_run(run, tmp_path / "file") == 2
  error = capsys.readouterr().err
  assert "--out=" in error and error.count("\n") == 1
