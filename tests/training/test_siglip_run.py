"""SigLIP from a published folder through training, evaluation, search and conversion."""

import io
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from PIL import Image

from dgia_jax import convert, sharding
from dgia_jax.errors import UserError
from dgia_jax.method import compilation, train_state
from dgia_jax.models import dual_encoder, families, pretrained
from dgia_jax.reporting.console import Console
from dgia_jax.search.retriever import Retriever
from dgia_jax.training import setup, train
from tests.helpers import model_b, siglip_files, tiny_run
from tests.helpers.trees import by_name

TOWER = dual_encoder.TowerSize(32, 2, 2, mlp_width=80)
SIZE = dual_encoder.Size(TOWER, TOWER, 32, patch_size=8, family=families.SIGLIP)
CONTEXT_LENGTH, VOCAB_SIZE = 10, 120
TEXTS = ["a man, in a RED coat", "blue jeans"]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A folder as transformers writes SigLIP 2, with random weights."""
  folder = tmp_path_factory.mktemp("published")
  siglip_files.write_siglip_2(folder, VOCAB_SIZE)
  model = dual_encoder.DualEncoder(
    SIZE, image_size=(24, 24), context_length=CONTEXT_LENGTH, vocab_size=VOCAB_SIZE,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  _, params = model_b.split(model)
  pretrained.write_folder(folder, params, image_size=(24, 24), family=families.SIGLIP)
  return folder


def config(published, **fields):
  dual_encoder.SIZES["test_siglip"] = SIZE
  settings = {
    "model__name": "test_siglip",
    "pretrained": str(published),
    "tokenizer__name": str(published),
    "tokenizer__context_length": CONTEXT_LENGTH,
    "dataset__image_size": (16, 24),
    "num_epochs": 2,
    "mesh__data": 2,
    "mesh__fsdp": 2,
    "mesh__tensor": 2,
  }
  return tiny_run.config(**settings | fields)


def splits():
  """The tiny run's pairs with images of 16 x 24."""
  tables = tiny_run.splits()
  return {
    name: type(table)(
      images=np.concatenate([np.stack(list(table.images))] * 2, axis=2)[:, :, :24],
      image_of_pair_N=table.image_of_pair_N,
      captions=table.captions,
      person_of_image_M=table.person_of_image_M,
    )
    for name, table in tables.items()
  }


@pytest.fixture(scope="module")
def run(published, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  train.train(config(published), workdir, Console(file=io.StringIO()), splits())
  return workdir


def test_a_run_learns_and_is_evaluated(run):
  losses = [line["loss"] for line in tiny_run.metrics(run) if line["split"] == "train"]
  assert losses[-1] < losses[0]
  scores = json.loads((run / "results.json").read_text())["last"]["t2i"]
  assert 0 < scores["mAP"] <= 100


ONE_DEVICE = {"mesh__data": 1, "mesh__fsdp": 1, "mesh__tensor": 1}


@pytest.fixture
def one_device(monkeypatch):
  """Lets a mesh be smaller than the devices of this process; it compiles faster."""
  create = sharding.create_mesh
  monkeypatch.setattr(
    sharding, "create_mesh", lambda devices=None, **axes: create(devices=jax.devices()[:1], **axes)
  )


def one_step(parts):
  """(all parameters before, after, metrics) of one optimiser step."""
  state = train_state.create(parts.mesh, setup.state_initializer(parts))
  before = jax.device_get(state.params)
  batches = train.global_batches(parts, parts.tokenizer.encode(parts.train_pairs.captions), 0)
  batch = next(iter(batches))
  step = compilation.compile_step(setup.create_step(parts), parts.mesh, state, batch)
  state, output = step(state, batch)
  batches.close()
  return by_name(before), by_name(jax.device_get(state.params)), jax.device_get(output.metrics)


# Weight decay moves what has no gradient, too.
PLAIN = ONE_DEVICE | {"optimizer__weight_decay": 0.0}
FROZEN = {"freeze__image_blocks": 1, "freeze__text_blocks": -1}
LORA = {"lora__rank": 2, "lora__matrices": ("qkv", "out", "up", "down")}


@pytest.mark.parametrize("fields", [FROZEN, LORA, LORA | FROZEN])
def test_one_step_trains_what_it_should(published, one_device, tmp_path, fields):
  parts = setup.create(config(published, **PLAIN, **fields), tmp_path, splits())
  before, after, metrics = one_step(parts)
  assert all(np.isfinite(value) for value in metrics.values())
  changed = {name for name in before if not np.array_equal(before[name], after[name])}
  is_lora, is_frozen = "lora__rank" in fields, "freeze__text_blocks" in fields
  for name in before:
    if name.startswith("lora/"):
      expected = name.endswith("/b")  # B starts at 0, so A has no gradient in the first step
      expected &= not is_frozen or name.startswith("lora/image/last_block")
    elif is_lora or name.startswith("text/"):
      expected = False
    else:  # the pooling head is part of the trained rest
      expected = name.split("/")[1] in ("last_block", "norm_post", "pooling")
    assert (name in changed) == expected, name


def test_layers_below_move_less(published, one_device, tmp_path):
  parts = setup.create(config(published, **PLAIN, optimizer__layer_decay=0.1), tmp_path, splits())
  before, after, metrics = one_step(parts)
  assert all(np.isfinite(value) for value in metrics.values())
  moved = {
    part: max(
      np.abs(after[name] - before[name]).max()
      for name in before
      if name.startswith(f"image/{part}") and name.endswith(("kernel", "embedding"))
    )
    for part in ("pooling", "last_block", "blocks", "patch_embedding")
  }
  # Adam's first step is as long as the learning rate, whatever the gradient.
  for part, decay in (("last_block", 0.1), ("blocks", 0.01), ("patch_embedding", 0.001)):
    assert moved[part] == pytest.approx(decay * moved["pooling"], rel=0.05), part


def test_lora_is_merged_on_conversion(published, one_device, tmp_path):
  fields = ONE_DEVICE | LORA | {"optimizer__learning_rate": 1e-2, "num_epochs": 1}
  workdir = tmp_path / "run"
  train.train(config(published, **fields), workdir, Console(file=io.StringIO()), splits())
  convert.convert(workdir, tmp_path / "converted")
  images = list(splits()["test"].images[:3])
  start, learned, converted = (
    Retriever.from_pretrained(source, batch_size=8)
    for source in (published, workdir, tmp_path / "converted")
  )
  for embed, inputs in (("embed_images", images), ("embed_texts", TEXTS)):
    expected = getattr(learned, embed)(inputs)
    np.testing.assert_allclose(getattr(converted, embed)(inputs), expected, rtol=0, atol=1e-5)
    assert np.abs(getattr(start, embed)(inputs) - expected).max() > 1e-2  # it has learned
  names = safetensors.numpy.load_file(tmp_path / "converted" / "model.safetensors")
  assert not any("lora" in name for name in names)


def test_only_words_are_masked_and_pixels_normalised_as_siglips(published, tmp_path):
  parts = setup.create(config(published), tmp_path, splits())
  step = setup.create_step(parts)
  assert tuple(step.keywords["masking"]) == (4, 5, VOCAB_SIZE, 0)
  assert step.keywords["pixel_statistics"] == families.SIGLIP.pixels


def test_transformers_gives_the_features_of_the_search(run, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  assert "with its tokenizer" in convert.convert(run, tmp_path)
  model, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
  assert type(model).__name__ == "SiglipModel" and not report["missing_keys"]
  processor = transformers.AutoProcessor.from_pretrained(tmp_path)
  images = list(splits()["test"].images[:3])
  inputs = processor(
    text=[text.lower() for text in TEXTS], images=[Image.fromarray(image) for image in images],
    padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, padding_side="right",
    return_tensors="pt",
  )  # fmt: skip
  with torch.no_grad():
    image = model.get_image_features(inputs["pixel_values"], interpolate_pos_encoding=True)
    text = model.get_text_features(inputs["input_ids"])
  for source in (run, tmp_path):
    retriever = Retriever.from_pretrained(source, batch_size=8)
    assert retriever.image_size == (16, 24)
    for actual, expected in (
      (retriever.embed_images(images), image), (retriever.embed_texts(TEXTS), text)
    ):  # fmt: skip
      expected = expected.pooler_output.numpy()
      expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
      np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_a_run_of_another_family_is_refused(run, published, tmp_path):
  dual_encoder.SIZES["test_size"] = tiny_run.SIZE
  other = config(published)
  other.model.name, other.pretrained = "test_size", str(run)
  parts = setup.create(other, tmp_path, splits())
  with pytest.raises(UserError, match="is a run of test_siglip, which is SigLIP"):
    setup.initial_state(parts)
