"""open_clip's folders: their config is read and checked, their weights load, search opens them."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.models import families, pretrained
from dgia_jax.models.pretrained import checkpoint_files, tensor_names
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.search.retriever import Retriever
from tests.helpers import model_b
from tests.helpers.family_models import OPEN_CLIP, VOCAB, create, load


def open_clip_folder(folder, **model_cfg):
  """Writes OpenCLIP's model as open_clip publishes it; returns its parameters."""
  _, params = create("open_clip", (64, 64))
  config = {
    "model_cfg": {
      "embed_dim": 32,
      "vision_cfg": {
        "image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16,
        "patch_dropout": 0.5,
      },
      "text_cfg": {
        "context_length": 77, "vocab_size": VOCAB, "width": 48, "heads": 2, "layers": 2,
      },
    } | model_cfg,
    "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": None},
  }  # fmt: skip
  (folder / "open_clip_config.json").write_text(json.dumps(config))
  tensors = params_lib.write_tensors(params, tensor_names.OPENAI)
  tensors["logit_scale"] = np.float32(4.6)[None]
  safetensors.numpy.save_file(tensors, folder / "open_clip_model.safetensors")
  return params


def edit(folder, change):
  path = folder / "open_clip_config.json"
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_a_folder_of_open_clip(tmp_path):
  params = open_clip_folder(tmp_path)
  config = pretrained.read_config(tmp_path)
  assert (config.size, config.image_size, config.vocab_size) == (OPEN_CLIP, (64, 64), VOCAB)
  _, loaded = model_b.split(load(tmp_path, "open_clip", (64, 64)))
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded, params)))
  edit(tmp_path, lambda content: content["model_cfg"].update(quick_gelu=True))
  assert pretrained.read_config(tmp_path).size.family == families.CLIP


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="vit"), "timm_model_name"),
    (lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True), "no_causal_mask"),
    (lambda c: c["model_cfg"]["text_cfg"].update(pool_type="last"), "pool_type"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(width="64"), "width is '64'"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(head_width=24), "width 64 does not divide"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(mlp_ratio=-1), "mlp_ratio is -1"),
    (lambda c: c["model_cfg"]["vision_cfg"].update(image_size=8), "image_size 8 is below"),
    (lambda c: c.pop("model_cfg"), "model_cfg is not a JSON object"),
    (lambda c: c["preprocess_cfg"].update(mean=[0.5, 0.5, 0.5]), "mean is .*normalisation"),
  ],
)
def test_mistakes_in_open_clips_config_name_the_field(tmp_path, change, message):
  open_clip_folder(tmp_path)
  edit(tmp_path, change)
  with pytest.raises(UserError, match=f"open_clip_config.json: .*{message}"):
    pretrained.read_config(tmp_path)


def test_another_normalisation_beside_the_config_of_transformers_is_noticed(tmp_path):
  open_clip_folder(tmp_path)
  stored = pretrained.read_config(tmp_path)
  edit(tmp_path, lambda content: content["preprocess_cfg"].update(mean=[0.5, 0.5, 0.5]))
  with pytest.raises(UserError, match="open_clip_config.json: mean is .*normalisation"):
    checkpoint_files.check_preprocessing(tmp_path, stored)


@pytest.mark.parametrize(
  "interpolation, resize",
  [(None, "bicubic"), ("bilinear", "bilinear"), ("bicubic", "bicubic"), ("random", "bicubic")],
)
def test_the_filter_of_open_clip(tmp_path, interpolation, resize):
  open_clip_folder(tmp_path)
  edit(tmp_path, lambda content: content["preprocess_cfg"].update(interpolation=interpolation))
  assert pretrained.read_resize(tmp_path) == resize
  (tmp_path / "preprocessor_config.json").write_text('{"resample": 2}')
  assert pretrained.read_resize(tmp_path) == "bilinear"


def test_an_unknown_filter_of_open_clip_is_a_user_error(tmp_path):
  open_clip_folder(tmp_path)
  edit(tmp_path, lambda content: content["preprocess_cfg"].update(interpolation=["lanczos"]))
  with pytest.raises(UserError, match="open_clip_config.json: interpolation=.* is neither"):
    pretrained.read_resize(tmp_path)


def test_search_opens_a_folder_of_open_clip(tmp_path):
  captions = ["a man with a red coat", "a woman in blue shoes"] * 3
  vocabulary = tokenizer_lib.train_tokenizer(captions, 77, VOCAB)
  vocabulary.save(tmp_path)
  params = open_clip_folder(tmp_path)
  edit(tmp_path, lambda c: c["model_cfg"]["text_cfg"].update(vocab_size=vocabulary.vocab_size))
  path = tmp_path / "open_clip_model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  tensors["token_embedding.weight"] = tensors["token_embedding.weight"][: vocabulary.vocab_size]
  safetensors.numpy.save_file(tensors, path)
  retriever = Retriever.from_pretrained(tmp_path, batch_size=8)
  assert retriever.image_size == (64, 64) and retriever.feature_width == 32
  model = load_like(params, vocabulary.vocab_size)
  features = np.asarray(model.encode_text(vocabulary.encode(captions[:2])))
  features = features / np.linalg.norm(features, axis=1, keepdims=True)
  np.testing.assert_allclose(retriever.embed_texts(captions[:2]), features, atol=1e-5)


def load_like(params, vocab_size):
  """A model with these parameters and the first rows of their token table."""
  graphdef, _ = model_b.split(model_b.create((64, 64), OPEN_CLIP, vocab_size))
  table = params["text"]["token_embedding"][:vocab_size]
  return nnx.merge(graphdef, params | {"text": params["text"] | {"token_embedding": table}})
