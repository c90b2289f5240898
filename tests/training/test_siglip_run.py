"""SigLIP from a published folder through training, evaluation, search and conversion."""

import io
import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dgia_jax import convert
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, families, pretrained
from dgia_jax.reporting.console import Console
from dgia_jax.search.retriever import Retriever
from dgia_jax.training import setup, train
from tests.helpers import model_b, siglip_files, tiny_run

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


def config(published):
  dual_encoder.SIZES["test_siglip"] = SIZE
  return tiny_run.config(
    model__name="test_siglip",
    pretrained=str(published),
    tokenizer__name=str(published),
    tokenizer__context_length=CONTEXT_LENGTH,
    dataset__image_size=(16, 24),
    num_epochs=2,
    mesh__data=2,
    mesh__fsdp=2,
    mesh__tensor=2,
  )


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
