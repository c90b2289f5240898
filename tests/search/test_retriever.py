"""Features of a retriever are those of the model, and its ranking is that of a plain argsort."""

import json
import logging
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

import dgia_jax
from dgia_jax import convert, sharding
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.method import losses
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.search import exact
from dgia_jax.search.retriever import Gallery, Retriever
from dgia_jax.training import workdir as workdir_lib
from tests.helpers import siglip_files
from tests.helpers.known_run import IMAGE_SIZE, make_model
from tests.helpers.meshes import mesh_of

TEXTS = ["a man with a red coat", "a woman wears blue shoes", "red"]


@pytest.fixture
def paths(tmp_path, rng):
  """Five images of other sizes than the model's."""
  found = []
  for number in range(5):
    pixels = rng.integers(0, 255, (40 + number, 30, 3), np.uint8)
    found.append(tmp_path / f"{number}.png")
    Image.fromarray(pixels).save(found[-1])
  return found


def test_opening_a_run_warns_of_nothing(known_run, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("absl"), "filters", [])  # as in a new process
  with caplog.at_level("WARNING"):
    dgia_jax.Retriever.from_run(known_run)
  assert not [record.getMessage() for record in caplog.records]


def test_features_are_those_of_the_model(known_run, paths):
  retriever = dgia_jax.Retriever.from_run(known_run, batch_size=8)
  words = retriever._tokenizer
  model = make_model(words, seed=1)  # of the best checkpoint
  resized = np.stack(
    [
      np.asarray(Image.open(path).resize(IMAGE_SIZE[::-1], Image.Resampling.BILINEAR))
      for path in paths
    ]
  )
  images = losses.normalize(model.encode_image(pixels_lib.normalize_pixels(resized)))
  texts = losses.normalize(model.encode_text(words.encode(TEXTS)))
  np.testing.assert_allclose(retriever.embed_images(paths), images, atol=1e-5)
  np.testing.assert_allclose(retriever.embed_images(list(resized)), images, atol=1e-5)
  np.testing.assert_allclose(retriever.embed_texts(TEXTS), texts, atol=1e-5)
  assert retriever.embed_texts([]).shape == (0, retriever.feature_width)

  last = Retriever.from_run(known_run, "last", batch_size=8)
  assert np.abs(last.embed_texts(TEXTS) - texts).max() > 0.01
  assert last.digest() != retriever.digest() == Retriever.from_run(known_run).digest()


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", None])
def test_images_are_resized_as_in_training(known_run, paths, tmp_path, resize):
  """By a run and its Hugging Face folder. Runs of release 0.1, without the setting, use bicubic."""
  run, out = tmp_path / "run", tmp_path / "hugging_face"
  shutil.copytree(known_run, run)
  config = json.loads((run / "config.json").read_text())
  del config["dataset"]["resize"]
  if resize:
    config["dataset"]["resize"] = resize
  (run / "config.json").write_text(json.dumps(config))
  convert.convert(run, out)
  name = "BILINEAR" if resize == "bilinear" else "BICUBIC"
  expected = Image.open(paths[0]).resize(IMAGE_SIZE[::-1], Image.Resampling[name])
  for folder in (run, out):
    pixels = Retriever.open(folder, batch_size=8).read_image(paths[0])
    np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_a_hugging_face_folder_gives_the_same_features(known_run, paths, tmp_path):
  out = tmp_path / "hugging_face"
  convert.convert(known_run, out)
  ours, theirs = Retriever.open(known_run, batch_size=8), Retriever.open(out, batch_size=8)
  assert theirs.image_size == IMAGE_SIZE
  np.testing.assert_array_equal(theirs.embed_texts(TEXTS), ours.embed_texts(TEXTS))
  # The folder keeps the position table of oblong images as a square, which rounds.
  np.testing.assert_allclose(theirs.embed_images(paths), ours.embed_images(paths), atol=1e-5)


@pytest.mark.parametrize("length, vocab_size", [(16, 265), (15, 300)])
def test_a_tokenizer_of_another_model_is_refused(known_run, tmp_path, length, vocab_size):
  run, out = tmp_path / "run", tmp_path / "out"
  shutil.copytree(known_run, run)
  convert.convert(run, out)
  texts = ["a man with a red coat", "A woman wears   BLUE shoes, a bag & a hat", "red, red!"]
  other = tokenizer_lib.train_tokenizer(texts, length, vocab_size)
  for folder, place in ((run, run / workdir_lib.TOKENIZER), (out, out)):
    Retriever.open(folder)
    other.save(place)
    with pytest.raises(UserError, match="^the tokenizer is of another model: it has") as error:
      Retriever.open(folder)
    assert f" {other.vocab_size} tokens and texts of {length}, " in str(error.value)


@pytest.mark.parametrize(
  "unused_rows, positions, fits", [(0, 10, True), (8, 10, True), (-1, 10, False), (8, 11, False)]
)
def test_siglips_table_of_tokens_may_have_unused_rows(
  known_run, tmp_path, unused_rows, positions, fits
):
  pytest.importorskip("transformers")
  folder = siglip_files.write_siglip_2(tmp_path / "siglip2")
  tokenizer = tokenizer_lib.pretrained_tokenizer(str(folder), 10, is_siglip=True)
  retriever = Retriever.from_run(known_run)
  text = retriever._params["text"] | {
    "token_embedding": np.zeros((tokenizer.vocab_size + unused_rows, 2), np.float32),
    "position_embedding": np.zeros((positions, 2), np.float32),
  }
  params, graphdef = retriever._params | {"text": text}, retriever._embedder._graphdef
  create = lambda: Retriever(graphdef, params, tokenizer, IMAGE_SIZE, "bilinear")
  if fits:
    create()
  else:
    with pytest.raises(UserError, match="^the tokenizer is of another model: it has"):
      create()


def test_a_tilde_is_a_home_folder(known_run, monkeypatch):
  monkeypatch.setenv("HOME", str(known_run.parent))
  expected = Retriever.open(known_run)
  for create in (Retriever.from_pretrained, Retriever.from_run):
    assert create(f"~/{known_run.name}").digest() == expected.digest()
  with pytest.raises(UserError, match="^model=~nobody-here/a: no home folder is known"):
    Retriever.from_pretrained("~nobody-here/a")
  for create in (Retriever.from_run, Retriever.from_hugging_face):
    with pytest.raises(UserError, match="^model=~nobody-here/a: no home folder is known"):
      create("~nobody-here/a")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_ranking_equals_argsort(shape, rng):
  mesh = mesh_of(*shape)
  gallery = rng.normal(size=(45, 8)).astype(np.float32)
  gallery[7] = gallery[3]  # a tie
  queries = np.concatenate([gallery[3:4], rng.normal(size=(2, 8))]).astype(np.float32)
  scores, rows = Gallery(gallery, mesh).search(queries, 6)
  cosines = np.asarray(losses.cosine(queries, gallery))
  np.testing.assert_array_equal(rows, np.argsort(-cosines, axis=1, kind="stable")[:, :6])
  np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :6], atol=1e-6)
  assert list(rows[0, :2]) == [3, 7]
  assert Gallery(gallery[:2], mesh).search(queries, 6)[1].shape == (3, 2)


def test_ranking_never_returns_what_cannot_be_ranked(rng):
  mesh = sharding.create_mesh()
  features = rng.normal(size=(45, 8)).astype(np.float32)
  features[3] = 0
  query = features[:2]
  scores, rows = Gallery(features, mesh).search(query, 100)
  assert scores.shape == (2, 44) and np.isfinite(scores).all() and 3 not in rows
  assert Gallery(np.zeros((4, 8), np.float32), mesh).search(query, 5)[0].shape == (2, 0)
  features[5, 2] = np.nan
  with pytest.raises(UserError, match="NaN"):
    Gallery(features, mesh)
  with pytest.raises(UserError, match="NaN"):
    Gallery(query, mesh).search(features[5:6], 1)


def test_a_histogram_counts_cosines_that_rounding_makes_too_large():
  features = np.float32([[1 + 2**-20, 0], [-1 - 2**-20, 0]])
  counts = Gallery(features, sharding.create_mesh(), np.ones(2, bool)).histogram(features[0])
  assert counts[0] == counts[-1] == 1 and counts.sum() == 2


def test_impossible_searches_are_one_line(known_run, rng):
  retriever = Retriever.from_run(known_run, batch_size=8)
  features = rng.normal(size=(20, 8)).astype(np.float32)
  gallery = Gallery(features, retriever.mesh)
  exactly = exact.ExactGallery(gallery, lambda rows: features[rows])
  searches = (
    gallery.search,
    exactly.search,
    lambda *args: retriever.rank(args[0], features, args[1]),
  )
  for search in searches:
    for top in (0, -1):
      with pytest.raises(UserError, match=f"^top={top}: give 1 or more$"):
        search(features, top)
    for queries, shape in ((features[0], r"\(8,\)"), (features[:, :5], r"\(20, 5\)")):
      with pytest.raises(UserError, match=rf"^queries have the shape {shape}: give \(queries, 8\)"):
        search(queries, 3)


def test_images_of_any_kind_and_size_are_resized_like_files(known_run, paths):
  retriever = Retriever.from_pretrained(known_run, batch_size=8)
  expected = retriever.embed_images(paths)
  opened = [Image.open(path) for path in paths]
  arrays = [np.asarray(image) for image in opened]
  for images in (iter(paths), map(str, paths), opened, arrays):
    np.testing.assert_array_equal(retriever.embed_images(images), expected)
  for image in (paths[0], str(paths[0]), opened[0], arrays[0]):
    np.testing.assert_allclose(retriever.embed_images(image), expected[:1], atol=1e-6)
  gray = opened[0].convert("L")
  np.testing.assert_array_equal(
    retriever.embed_images(gray), retriever.embed_images(np.asarray(gray.convert("RGB")))
  )


def test_tensors_and_rows_of_datasets_are_images(known_run, paths):
  torch = pytest.importorskip("torch")
  retriever = Retriever.from_run(known_run, batch_size=8)
  expected = retriever.embed_images(paths)
  files = [Image.open(path).convert("RGB") for path in paths]
  rows = [{"image": image, "caption": "a man"} for image in files]
  np.testing.assert_array_equal(retriever.embed_images(rows), expected)
  np.testing.assert_allclose(retriever.embed_images(rows[0]), expected[:1], atol=1e-6)
  tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in files]
  np.testing.assert_array_equal(retriever.embed_images(tensors), expected)
  floats = [tensor / 255 for tensor in tensors]
  np.testing.assert_array_equal(retriever.embed_images(floats), expected)
  np.testing.assert_allclose(retriever.embed_images(tensors[1]), expected[1:2], atol=1e-6)
  batch = torch.stack([tensors[0], tensors[0]])
  np.testing.assert_allclose(retriever.embed_images(batch), expected[[0, 0]], atol=1e-6)
  for wrong, reason in (
    (tensors[0].permute(1, 2, 0), r"shape \(40, 30, 3\): give \(3, height, width\)"),
    (floats[0] * 2 - 1, "outside 0 to 1"),
    (floats[0] * float("nan"), "outside 0 to 1"),
    ({"picture": files[0]}, r"no key 'image', only \['picture'\]"),
  ):
    with pytest.raises(UserError, match=reason):
      retriever.embed_images([wrong])


def test_a_string_is_one_description(known_run):
  retriever = Retriever.from_pretrained(known_run, batch_size=8)
  expected = retriever.embed_texts(TEXTS)
  # Fewer texts make a smaller batch, and rounding may differ.
  np.testing.assert_allclose(retriever.embed_texts(TEXTS[0]), expected[:1], atol=1e-6)
  smaller = retriever.embed_texts(iter(TEXTS), batch_size=1, progress=True)
  np.testing.assert_allclose(smaller, expected, atol=1e-6)
  assert retriever.embed_texts("caf\udce9").shape == (1, retriever.feature_width)
  for empty in ("", ["a hat", "  "]):
    with pytest.raises(UserError, match="at least one word"):
      retriever.embed_texts(empty)


def test_features_that_are_not_finite_are_refused(known_run):
  retriever = Retriever.from_pretrained(known_run, batch_size=8)
  retriever._params = jax.tree.map(lambda leaf: leaf * np.nan, retriever._params)
  with pytest.raises(UserError, match="weights are damaged"):
    retriever.embed_texts("red")


def test_the_public_names_are_listed():
  assert {"Retriever", "__version__"} <= set(dir(dgia_jax))
  assert set(dgia_jax.__all__) == {"Retriever", "__version__"}
  with pytest.raises(AttributeError, match="Retrieve"):
    _ = dgia_jax.Retrieve


def test_mistakes_name_the_source(known_run, tmp_path):
  retriever = Retriever.from_run(known_run, batch_size=8)
  (tmp_path / "broken.jpg").write_text("no image")
  with pytest.raises(UserError, match="broken.jpg"):
    retriever.embed_images([tmp_path / "broken.jpg"])
  for wrong in (np.zeros((3, 3), np.uint8), np.zeros((3, 3, 3), np.float32)):
    with pytest.raises(UserError, match="uint8"):
      retriever.embed_images([wrong])
  with pytest.raises(UserError, match="an image is a int"):
    retriever.embed_images([3])
  with pytest.raises(UserError, match="holds no run"):
    Retriever.open(tmp_path)
  with pytest.raises(UserError, match="no such folder"):
    Retriever.from_pretrained(tmp_path / "nowhere")
  with pytest.raises(UserError, match="--run=a{300}: cannot be read"):
    Retriever.from_pretrained("a" * 300, setting="--run")
  with pytest.raises(UserError, match="is a file"):
    Retriever.from_pretrained(tmp_path / "broken.jpg")
  (tmp_path / "config.json").write_text('{"model_type": "bert", "vision_config": {}}')
  with pytest.raises(UserError, match="bert"):
    Retriever.open(tmp_path)


def test_a_name_is_looked_up_on_the_hub(known_run, tmp_path, monkeypatch):
  out = tmp_path / "hugging_face"
  convert.convert(known_run, out)
  asked = []

  def snapshot_download(name, local_files_only):
    asked.append((name, local_files_only))
    return str(out)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  retriever = Retriever.from_pretrained("someone/clip", setting="--run", batch_size=8)
  assert asked == [("someone/clip", True)] and retriever.image_size == IMAGE_SIZE


def test_a_name_that_the_hub_does_not_have_is_one_line(tmp_path, monkeypatch):
  def snapshot_download(name, local_files_only):
    raise LocalEntryNotFoundError("not in the cache")

  def model_info(api, name, timeout):
    raise ConnectionError("no network")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
  with pytest.raises(UserError, match=r"--run='someone/clip'.*no network.*the folder of a"):
    Retriever.from_pretrained("someone/clip", setting="--run")
