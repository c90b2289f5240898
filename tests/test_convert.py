"""A run becomes a folder that transformers loads, and that a new run can start from."""

import json
import os
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from huggingface_hub.errors import LocalTokenNotFoundError

from dgia_jax import config, convert, files, hub, remote
from dgia_jax.data import new_words
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.search import standalone
from dgia_jax.search.retriever import Retriever
from dgia_jax.training import workdir as workdir_lib
from tests.helpers import family_models, siglip_files, vocabularies
from tests.helpers import known_run as known_run_lib
from tests.helpers.known_run import CAPTIONS, IMAGE_SIZE, make_model
from tests.helpers.odd_captions import odd_captions


def convert_run(run, out, *more):
  return convert.main(["--run", str(run), "--out", str(out), *more])


@pytest.fixture
def siglip_run(tmp_path, monkeypatch):
  """Function that writes a run of a SigLIP with a vocabulary of `siglip_files`."""
  monkeypatch.setitem(dual_encoder.SIZES, "small_siglip", family_models.SIGLIP)

  def write(kind):
    pytest.importorskip("transformers")
    vocabulary = getattr(siglip_files, f"write_{kind}")(tmp_path / kind)
    (tmp_path / "siglip_run").mkdir()
    return known_run_lib.write_run(tmp_path / "siglip_run", "small_siglip", vocabulary)

  return write


@pytest.mark.parametrize("choice, seed", [("best", 1), ("last", 2)])
def test_the_chosen_checkpoint_is_written(known_run, tmp_path, capsys, choice, seed):
  assert convert_run(known_run, tmp_path, "--checkpoint", choice) == 0
  assert f"step {seed}" in capsys.readouterr().out
  tokenizer = tokenizer_lib.load_tokenizer(known_run / workdir_lib.TOKENIZER)
  expected = nnx.to_pure_dict(nnx.state(make_model(tokenizer, seed), nnx.Param))
  loaded = pretrained.load_pretrained(str(tmp_path), expected, image_size=IMAGE_SIZE)
  for actual, value in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(actual, value, rtol=0, atol=1e-6)


def test_transformers_gives_equal_features_from_raw_captions_and_images(known_run, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from PIL import Image

  assert convert_run(known_run, tmp_path) == 0
  theirs = transformers.AutoModel.from_pretrained(tmp_path)
  processor = transformers.AutoProcessor.from_pretrained(tmp_path)
  pixels = np.random.default_rng(0).integers(0, 256, (2, *IMAGE_SIZE, 3), np.uint8)
  inputs = processor(
    text=CAPTIONS,
    images=[Image.fromarray(image) for image in pixels],
    padding="max_length",
    truncation=True,
    return_tensors="pt",
  )
  tokenizer = tokenizer_lib.load_tokenizer(known_run / workdir_lib.TOKENIZER)
  np.testing.assert_array_equal(inputs["input_ids"].numpy(), tokenizer.encode(CAPTIONS))
  with torch.no_grad():
    image = theirs.get_image_features(
      pixel_values=inputs["pixel_values"], interpolate_pos_encoding=True
    ).pooler_output
    text = theirs.get_text_features(input_ids=inputs["input_ids"]).pooler_output
  assert float(theirs.logit_scale.detach().exp()) == pytest.approx(20)

  ours = make_model(tokenizer, seed=1)
  for actual, expected in (
    (image, ours.encode_image(pixels_lib.normalize_pixels(jnp.asarray(pixels)))),
    (text, ours.encode_text(jnp.asarray(tokenizer.encode(CAPTIONS)))),
  ):
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("vocabulary", ["own", "own with new words", "clip", "bert"])
def test_transformers_gives_equal_ids_for_odd_captions(known_run, tmp_path, vocabulary):
  transformers = pytest.importorskip("transformers")
  run = tmp_path / "run"
  shutil.copytree(known_run, run)
  settings = json.loads((run / "config.json").read_text())
  captions = odd_captions(seed=1, count=2000)
  if not vocabulary.startswith("own"):
    settings["tokenizer"]["name"] = str(vocabularies.write(vocabulary, tmp_path / vocabulary))
    (run / "config.json").write_text(json.dumps(settings))
    length = settings["tokenizer"]["context_length"]
    tokenizer = tokenizer_lib.pretrained_tokenizer(settings["tokenizer"]["name"], length)
  else:
    tokenizer = tokenizer_lib.load_tokenizer(run / workdir_lib.TOKENIZER)
  if vocabulary == "own with new words":
    size = tokenizer.vocab_size
    tokenizer = new_words.add_new_words(tokenizer, captions, 1)
    assert tokenizer.vocab_size > size + 10
    tokenizer.save(run / workdir_lib.TOKENIZER)
  assert convert_run(run, tmp_path / "out") == 0
  converted = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  ids = converted(captions, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
  different = (ids != tokenizer.encode(captions)).any(axis=1)
  assert different.sum() <= 4, [c for c, d in zip(captions, different, strict=True) if d]


def test_a_flipped_bit_in_converted_weights_is_noticed(known_run, tmp_path):
  assert convert_run(known_run, tmp_path) == 0
  listed = (tmp_path / "SHA256SUMS").read_text()
  assert "  model.safetensors\n" in listed and "  tokenizer.json\n" in listed
  path = tmp_path / "model.safetensors"
  content = bytearray(path.read_bytes())
  content[-100] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match="model.safetensors is damaged.*its checksum differs"):
    pretrained.load_pretrained(str(tmp_path), {}, image_size=IMAGE_SIZE)


def test_half_precision_halves_the_file(known_run, tmp_path):
  assert convert_run(known_run, tmp_path / "whole") == 0
  assert convert_run(known_run, tmp_path / "half", "--dtype", "float16") == 0
  whole, half = (
    safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "half")
  )
  assert whole.keys() == half.keys()
  for name, tensor in half.items():
    assert tensor.dtype == np.float16 and whole[name].dtype == np.float32
    np.testing.assert_array_equal(tensor, whole[name].astype(np.float16))
  size = lambda name: (tmp_path / name / "model.safetensors").stat().st_size
  assert 0.5 * size("whole") < size("half") < 0.52 * size("whole")
  features = [Retriever.open(tmp_path / n).embed_texts(CAPTIONS) for n in ("whole", "half")]
  np.testing.assert_allclose(*features, rtol=0, atol=5e-3)
  assert not np.array_equal(*features)


def test_transformers_reads_half_precision(known_run, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  assert convert_run(known_run, tmp_path, "--dtype", "float16") == 0
  theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype="auto")
  assert {parameter.dtype for parameter in theirs.parameters()} == {torch.float16}
  assert float(theirs.logit_scale.detach().exp()) == pytest.approx(20, rel=2e-3)


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
  tokenizer = tokenizer_lib.train_tokenizer(CAPTIONS, context_length=16, vocab_size=300)
  params = nnx.to_pure_dict(nnx.state(make_model(tokenizer, seed=1), nnx.Param))
  params["text"]["projection"] = params["text"]["projection"].at[0, 0].set(1e5)
  with pytest.raises(UserError, match="text_projection.weight has values that float16 cannot hold"):
    pretrained.write_folder(tmp_path, params, image_size=IMAGE_SIZE, dtype="float16")
  assert not list(tmp_path.iterdir())


def test_programs_are_written_in_single_precision_only(known_run, tmp_path, capsys):
  assert convert_run(known_run, tmp_path, "--format", "stablehlo", "--dtype", "float16") == 2
  error = capsys.readouterr().err
  assert "--dtype=float16" in error and error.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_a_run_stays_unchanged(known_run, tmp_path):
  before = {path: path.stat().st_mtime_ns for path in known_run.rglob("*")}
  assert convert_run(known_run, tmp_path) == 0
  assert {path: path.stat().st_mtime_ns for path in known_run.rglob("*")} == before


def test_without_a_vocabulary_the_weights_are_still_written(
  known_run, tmp_path, capsys, monkeypatch
):
  assert convert_run(known_run, tmp_path) == 0
  monkeypatch.setattr(workdir_lib, "TOKENIZER", "absent")
  assert convert_run(known_run, tmp_path) == 0
  assert "without a tokenizer" in capsys.readouterr().out
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "README.md", "SHA256SUMS", "config.json", "model.safetensors", "preprocessor_config.json",
  ]  # fmt: skip


def test_files_of_a_run_are_never_replaced(known_run, tmp_path, capsys):
  before = {path: path.stat().st_mtime_ns for path in known_run.rglob("*")}
  link = tmp_path / "link"
  link.symlink_to(known_run)
  damaged = tmp_path / "damaged"
  (damaged / "checkpoints").mkdir(parents=True)
  (damaged / "config.json").write_text("{")
  loop = tmp_path / "loop"
  loop.symlink_to(loop)
  inside = (known_run / "tokenizer", known_run / "checkpoints" / "new")
  for out in (known_run, link, *inside, damaged, damaged / "checkpoints", loop):
    assert convert_run(known_run, out) == 2
    error = capsys.readouterr().err
    assert "--out=" in error and error.count("\n") == 1
  assert {path: path.stat().st_mtime_ns for path in known_run.rglob("*")} == before


def test_a_new_folder_in_the_run_can_be_written_again(known_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(known_run, run)
  for _ in range(2):
    assert convert_run(run, run / "hugging_face") == 0


def test_mistakes_end_in_one_line(known_run, tmp_path, capsys):
  assert convert_run(tmp_path, tmp_path / "out") == 2
  assert "holds no run" in capsys.readouterr().err
  (tmp_path / "config.json").write_text(json.dumps(config.base().to_dict()))
  assert convert_run(tmp_path, tmp_path / "out") == 2
  assert "no complete checkpoint" in capsys.readouterr().err
  (tmp_path / "file").write_text("")
  assert convert_run(known_run, tmp_path / "file") == 2
  error = capsys.readouterr().err
  assert "--out=" in error and error.count("\n") == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", [None, "{", "[1]", "9" * 5000, "[" * 100_000])
def test_a_config_that_is_no_json_file_ends_in_one_line(tmp_path, capsys, content):
  if content is None:
    os.mkfifo(tmp_path / "config.json")
  else:
    (tmp_path / "config.json").write_text(content)
  assert convert_run(tmp_path, tmp_path / "out") == 2
  error = capsys.readouterr().err
  assert "config.json" in error and error.count("\n") == 1


@pytest.mark.parametrize("form", ["transformers", "stablehlo"])
def test_a_converted_model_is_uploaded(known_run, tmp_path, capsys, monkeypatch, form):
  uploads = []

  def push(folder, name, file_names, *, private, setting):
    uploads.append((name, private, {n for n in file_names if (folder / n).exists()}))
    return "https://huggingface.co/" + name

  monkeypatch.setattr(hub, "push", push)
  more = ["--format", form, "--push_to_hub", "owner/model", "--private"]
  assert convert_run(known_run, tmp_path, *more) == 0
  assert "uploaded it to https://huggingface.co/owner/model" in capsys.readouterr().out
  assert uploads == [("owner/model", True, {path.name for path in tmp_path.iterdir()})]


def test_a_failed_upload_leaves_the_folder(known_run, tmp_path, capsys, monkeypatch):
  def create_repo(api, name, private, exist_ok):
    raise LocalTokenNotFoundError("no token")

  monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
  assert convert_run(known_run, tmp_path / "out", "--push_to_hub", "owner/model") == 2
  error = capsys.readouterr().err
  assert "hf auth login" in error and error.count("\n") == 1
  assert (tmp_path / "out" / "model.safetensors").exists()


def test_mistakes_of_an_upload_are_noticed_before_any_work(known_run, tmp_path, capsys):
  for more, expected in (
    (["--push_to_hub", "model"], "give USER/NAME"),
    (["--private"], "give --push_to_hub"),
  ):
    assert convert_run(known_run, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "name", ["README.md", "config.json", "model.safetensors", "SHA256SUMS", "tokenizer.json"]
)
def test_files_of_others_are_never_replaced(known_run, tmp_path, capsys, name):
  (tmp_path / name).write_text("It was trained with `dgia_jax`")
  assert convert_run(known_run, tmp_path) == 2
  error = capsys.readouterr().err
  assert f"--out={tmp_path} holds {name}, not written" in error and error.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == "It was trained with `dgia_jax`"


def test_a_folder_with_other_files_can_be_written_and_written_again(known_run, tmp_path):
  (tmp_path / "diary.txt").write_text("dear diary")
  for _ in range(2):
    assert convert_run(known_run, tmp_path) == 0
  assert (tmp_path / "diary.txt").read_text() == "dear diary"


def test_an_interrupted_conversion_can_be_repeated(known_run, tmp_path, monkeypatch):
  def write_checksums(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(convert.files, "write_checksums", write_checksums)
    assert convert_run(known_run, tmp_path) == 130
  assert convert_run(known_run, tmp_path) == 0 and (tmp_path / "SHA256SUMS").exists()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_card_reaches_a_bucket_first(known_run, siglip_run, tmp_path, kind):
  """Without it, a conversion whose upload was interrupted would count as somebody else's files."""
  run = known_run if kind == "clip" else siglip_run(kind)
  assert convert_run(run, tmp_path / "out") == 0
  assert min((tmp_path / "out").iterdir(), key=remote._rank).name == "README.md"


def test_damaged_scores_are_noticed_before_the_weights_are_written(
  known_run, tmp_path, capsys, monkeypatch
):
  shutil.copytree(known_run, tmp_path / "run")
  (tmp_path / "run" / workdir_lib.RESULTS).write_text("{")
  monkeypatch.setattr(pretrained, "write_folder", None)
  assert convert_run(tmp_path / "run", tmp_path / "out") == 2
  assert "results.json is damaged" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_the_help_begins_with_a_whole_sentence(capsys):
  with pytest.raises(SystemExit):
    convert.main(["--help"])
  _, description, *_ = capsys.readouterr().out.split("\n\n")
  assert description.startswith("Exports") and description.endswith(".")


def test_formats_are_not_mixed_in_one_folder(known_run, tmp_path, capsys):
  (tmp_path / "text_encoder.onnx").touch()
  for form in ("transformers", "stablehlo"):
    assert convert_run(known_run, tmp_path, "--format", form) == 2
    assert "holds a model with --format=onnx" in capsys.readouterr().err


def test_the_pipeline_of_transformers_ranks_captions_as_the_card_says(known_run, tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from PIL import Image

  assert convert_run(known_run, tmp_path) == 0
  card = (tmp_path / "README.md").read_text()
  (code,) = [block for block in card.split("```python\n") if "pipeline(" in block]
  captions = ["a man with a red coat", "red, red!", "a hat"]  # none is too long
  pixels = np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), np.uint8)
  names = {"FOLDER": str(tmp_path), "captions": captions, "image": Image.fromarray(pixels)}
  lines = code.split("```")[0].strip().splitlines()
  exec("\n".join([*lines[:-1], f"results = {lines[-1]}"]), names)
  retriever = Retriever.open(known_run, batch_size=8)
  logits = 20 * retriever.embed_texts(captions) @ retriever.embed_images([pixels])[0]
  expected = np.exp(logits) / np.exp(logits).sum()
  scores = {result["label"]: result["score"] for result in names["results"]}
  np.testing.assert_allclose([scores[c] for c in captions], expected, atol=1e-5)


def test_a_tilde_is_a_home_folder(known_run, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  shutil.copytree(known_run, tmp_path / "run")
  assert convert_run("~/run", "~/out") == 0
  assert "with its tokenizer" in capsys.readouterr().out
  assert (tmp_path / "out" / "tokenizer.json").exists()


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_of_an_earlier_conversion_do_not_stay(known_run, tmp_path):
  assert convert_run(known_run, tmp_path) == 0
  names = contents(tmp_path).keys()
  for name in ("spiece.model", "special_tokens_map.json", "added_tokens.json"):
    (tmp_path / name).write_text("of a SigLIP")
  (tmp_path / "vocab.json").write_text("somebody's")  # no conversion writes it
  assert convert_run(known_run, tmp_path) == 0
  assert contents(tmp_path).keys() == {*names, "vocab.json"}


@pytest.mark.parametrize("kind", ["siglip", "siglip_2"])
def test_a_siglip_model_takes_the_place_of_a_clip_model(
  known_run, siglip_run, tmp_path, capsys, kind
):
  run, out = siglip_run(kind), tmp_path / "out"
  assert convert_run(known_run, out) == 0 and convert_run(run, out) == 0
  assert capsys.readouterr().out.count("with its tokenizer") == 2
  assert (out / "tokenizer.json").exists() == (kind == "siglip_2")
  ours, theirs = Retriever.open(run, batch_size=8), Retriever.open(out, batch_size=8)
  np.testing.assert_array_equal(theirs.embed_texts(CAPTIONS), ours.embed_texts(CAPTIONS))
  assert convert_run(known_run, out) == 0 and not (out / "spiece.model").exists()
  ours, theirs = Retriever.open(known_run, batch_size=8), Retriever.open(out, batch_size=8)
  np.testing.assert_array_equal(theirs.embed_texts(CAPTIONS), ours.embed_texts(CAPTIONS))


@pytest.mark.parametrize("kind", ["none", "clip", "siglip", "siglip_2"])
def test_the_description_of_programs_names_the_tokenizer(
  known_run, siglip_run, tmp_path, monkeypatch, kind
):
  # Programs that take no time to be written.
  monkeypatch.setitem(standalone.FORMATS, "stablehlo", lambda *_: b"program")
  run = siglip_run(kind) if kind.startswith("siglip") else known_run
  if kind == "none":
    monkeypatch.setattr(workdir_lib, "TOKENIZER", "absent")
  assert convert_run(run, tmp_path, "--format", "stablehlo") == 0
  about = json.loads((tmp_path / standalone.DESCRIPTION).read_text())
  name = about["text_encoder"]["tokenizer"]
  assert name == {"none": None, "siglip": "spiece.model"}.get(kind, "tokenizer.json")
  assert name is None or f"  {name}\n" in (tmp_path / "SHA256SUMS").read_text()


@pytest.mark.parametrize("error", [UserError("too large"), OSError(28, "No space left on device")])
def test_a_conversion_that_fails_changes_nothing(known_run, tmp_path, capsys, monkeypatch, error):
  out = tmp_path / "out"

  def write_folder(*_, **__):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(pretrained, "write_folder", write_folder)
    assert convert_run(known_run, out) == 2 and not out.exists()
  assert convert_run(known_run, out) == 0
  before = contents(out)
  monkeypatch.setattr(pretrained, "write_folder", write_folder)
  capsys.readouterr()
  assert convert_run(known_run, out, "--checkpoint", "last") == 2
  text = capsys.readouterr().err
  assert ("too large" in text or "No space left" in text) and text.count("\n") == 1
  assert contents(out) == before


def test_what_a_killed_conversion_left_is_removed(tmp_path):
  (tmp_path / ".converting-1").mkdir()
  (tmp_path / ".converting-1" / "model.safetensors").write_text("weights")
  (tmp_path / ".other").mkdir()
  with convert._written_aside(tmp_path):
    pass
  assert [path.name for path in tmp_path.iterdir()] == [".other"]


def test_a_folder_in_place_of_a_file_is_noticed_first(known_run, tmp_path, capsys):
  assert convert_run(known_run, tmp_path) == 0
  before = contents(tmp_path)
  (tmp_path / "spiece.model").mkdir()
  assert convert_run(known_run, tmp_path, "--checkpoint", "last") == 2
  assert "spiece.model is a folder" in capsys.readouterr().err
  (tmp_path / "spiece.model").rmdir()
  assert contents(tmp_path) == before


def test_checksums_are_those_of_the_files(known_run, tmp_path):
  assert convert_run(known_run, tmp_path) == 0
  lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
  assert [line.split("  ")[1] for line in lines] == ["model.safetensors", "tokenizer.json"]
  for line in lines:
    digest, name = line.split("  ")
    assert files.sha256(tmp_path / name) == digest
