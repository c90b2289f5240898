"""OpenCLIP and SigLIP: transformers computes equal features; their checkpoints load strictly."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, families, pretrained
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained import tensor_names
from tests.helpers import model_b
from tests.helpers.family_models import LENGTH, OPEN_CLIP, SIGLIP, SIZES, VOCAB, create, load


def their_model(transformers, torch, name, image_size=64, dtype="float32"):
  """transformers' model of the size, with random weights."""
  size = SIZES[name]

  def tower(of):
    return {
      "hidden_size": of.width, "intermediate_size": of.mlp_width or 4 * of.width,
      "num_hidden_layers": of.depth, "num_attention_heads": of.heads,
    }  # fmt: skip

  text = tower(size.text) | {"vocab_size": VOCAB, "max_position_embeddings": LENGTH[name]}
  vision = tower(size.image) | {"image_size": image_size, "patch_size": size.patch_size}
  torch.manual_seed(0)
  if name == "siglip":
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    model = transformers.SiglipModel(config)
  else:
    gelu = {"hidden_act": "gelu"}
    config = transformers.CLIPConfig(
      projection_dim=size.feature_width, vision_config=vision | gelu,
      text_config=text | gelu | {"eos_token_id": VOCAB - 1},
    )  # fmt: skip
    model = transformers.CLIPModel(config)
  with torch.no_grad():
    for parameter in model.parameters():  # initial biases are zero, which would hide mistakes
      parameter.add_(0.05 * torch.randn_like(parameter))
  return model.eval()


def assert_equal_features(torch, theirs, ours, name, image_size, **options):
  pixels, tokens = model_b.inputs(3, LENGTH[name], image_size, VOCAB)
  with torch.no_grad():
    image = theirs.get_image_features(
      torch.tensor(np.array(pixels)).permute(0, 3, 1, 2), **options
    ).pooler_output.numpy()
    text = theirs.get_text_features(torch.tensor(np.array(tokens), dtype=torch.long))
  for actual, expected in (
    (ours.encode_image(pixels), image),
    (ours.encode_text(tokens), text.pooler_output.numpy()),
  ):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture
def torch():
  pytest.importorskip("transformers")
  return pytest.importorskip("torch")


@pytest.fixture
def transformers(torch):
  del torch
  return pytest.importorskip("transformers")


# 72 leaves a remainder of 8 pixels, as 384 does with patches of 14.
@pytest.mark.parametrize("name, side", [("open_clip", 64), ("siglip", 64), ("siglip", 72)])
def test_transformers_weights_give_equal_features(tmp_path, torch, transformers, name, side):
  theirs = their_model(transformers, torch, name, side)
  theirs.save_pretrained(tmp_path)
  config = pretrained.read_config(tmp_path)
  assert config.size == SIZES[name] and config.image_size == (side, side)
  ours = load(tmp_path, name, (side, side))
  assert_equal_features(torch, theirs, ours, name, (side, side))


@pytest.mark.parametrize("image_size", [(96, 32), (64, 64)])
@pytest.mark.parametrize("name", SIZES)
def test_transformers_loads_what_we_write(tmp_path, torch, transformers, name, image_size):
  graphdef, params = create(name, image_size)
  pretrained.write_folder(tmp_path, params, image_size=image_size, family=SIZES[name].family)
  theirs, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
  assert type(theirs).__name__ == {"open_clip": "CLIPModel", "siglip": "SiglipModel"}[name]
  assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  ours = nnx.merge(graphdef, params)
  assert_equal_features(torch, theirs.eval(), ours, name, image_size, interpolate_pos_encoding=True)
  assert float(theirs.logit_scale.detach().exp()) == pytest.approx(50)


# 8 x 2 patches are as many as 4 x 4.
@pytest.mark.parametrize("image_size", [(96, 32), (128, 32), (64, 64)])
@pytest.mark.parametrize("name", SIZES)
def test_a_written_folder_loads_unchanged(tmp_path, name, image_size):
  _, params = create(name, image_size)
  pretrained.write_folder(tmp_path, params, image_size=image_size, family=SIZES[name].family)
  config = pretrained.read_config(tmp_path)
  assert (config.size, config.image_size) == (SIZES[name], image_size)
  _, back = model_b.split(load(tmp_path, name, image_size))
  table, original = (tree["image"].pop("position_embedding") for tree in (back, params))
  # The table of an oblong image was stored as a square.
  np.testing.assert_allclose(table, original, rtol=0, atol=1e-6)
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, params)))


def test_siglips_positions_are_resized(tmp_path):
  _, params = create("siglip", (64, 64))
  pretrained.write_folder(tmp_path, params, image_size=(64, 64), family=families.SIGLIP)
  ours = load(tmp_path, "siglip", (96, 32))
  table = params["image"]["position_embedding"].reshape(4, 4, 64)
  # Bilinear, half-pixel centres: columns 4 -> 2 average neighbours, row 0 of 6 reads row 0.
  expected = (table[0, 0] + table[0, 1]) / 2
  np.testing.assert_allclose(ours.image.position_embedding[...][0], expected, atol=1e-6)
  assert ours.image.position_embedding.shape == (12, 64)


def test_open_clips_torch_file_alone_is_described_by_the_model(tmp_path, torch):
  _, params = create("open_clip", (64, 64))
  tensors = params_lib.write_tensors(params, tensor_names.OPENAI)
  state = {name: torch.tensor(array) for name, array in tensors.items()}
  torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
  loaded = load(tmp_path / "open_clip_pytorch_model.bin", "open_clip", (64, 64))
  np.testing.assert_array_equal(loaded.text.projection[...], params["text"]["projection"])


def test_weights_of_another_activation_are_refused_with_the_right_name(tmp_path, monkeypatch):
  _, params = create("open_clip", (64, 64))
  pretrained.write_folder(tmp_path, params, image_size=(64, 64), family=families.OPEN_CLIP)
  monkeypatch.setitem(dual_encoder.SIZES, "openclip_small", OPEN_CLIP)
  with pytest.raises(UserError) as error:
    load(tmp_path, "open_clip", (64, 64), family=families.CLIP)
  message = str(error.value)
  assert "it is a model of OpenCLIP with the activation gelu" in message
  assert message.endswith("give config.model.name=openclip_small") and "\n" not in message


def test_clips_and_siglips_weights_are_not_confused(tmp_path, monkeypatch):
  _, params = create("siglip", (64, 64))
  pretrained.write_folder(tmp_path, params, image_size=(64, 64), family=families.SIGLIP)
  monkeypatch.setitem(dual_encoder.SIZES, "siglip_small", SIGLIP)
  with pytest.raises(UserError, match="holds a SigLIP model.*give config.model.name=siglip_small"):
    load(tmp_path, "open_clip", (64, 64))
  _, params = create("open_clip", (64, 64))
  pretrained.write_folder(tmp_path, params, image_size=(64, 64), family=families.OPEN_CLIP)
  with pytest.raises(UserError, match="holds a CLIP model, config.model.name one of SigLIP"):
    load(tmp_path, "siglip", (64, 64))


def test_a_wrong_tokenizer_is_named_in_the_words_of_the_settings(tmp_path):
  _, params = create("siglip", (64, 64))
  pretrained.write_folder(tmp_path, params, image_size=(64, 64), family=families.SIGLIP)
  model = model_b.create((64, 64), SIGLIP, 500, context_length=77)
  _, template = model_b.split(model)
  with pytest.raises(UserError) as error:
    pretrained.load_pretrained(str(tmp_path), template, image_size=(64, 64), family=families.SIGLIP)
  assert "it needs config.tokenizer.context_length=64" in str(error.value)
  assert "its vocabulary has 300 tokens, config.tokenizer's 500" in str(error.value)


def test_pixels_of_another_normalisation_are_refused(tmp_path):
  _, params = create("siglip", (64, 64))
  pretrained.write_folder(tmp_path, params, image_size=(64, 64), family=families.SIGLIP)
  path = tmp_path / "preprocessor_config.json"
  content = json.loads(path.read_text())
  assert content["image_mean"] == [0.5, 0.5, 0.5]
  path.write_text(json.dumps(content | {"image_mean": [0.48, 0.46, 0.41]}))
  with pytest.raises(UserError, match="image_mean is .*SigLIP models here need"):
    load(tmp_path, "siglip", (64, 64))


def test_siglip_without_its_head_is_refused(tmp_path):
  _, params = create("siglip", (64, 64))
  pretrained.write_folder(tmp_path, params, image_size=(64, 64), family=families.SIGLIP)
  path = tmp_path / "config.json"
  content = json.loads(path.read_text())
  content["vision_config"]["vision_use_head"] = False
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="vision_use_head is False, not True"):
    load(tmp_path, "siglip", (64, 64))


@pytest.mark.parametrize(
  "name, millions",
  [("openclip_vit_h_14", 986.1), ("siglip_b_16", 203.2), ("siglip_so400m_14", 877.4)],
)
def test_named_models_have_the_published_number_of_parameters(name, millions):
  """As their owners state, at 224 x 224 (so400m: 384) with their vocabularies."""
  siglip = name.startswith("siglip")
  side = 384 if name == "siglip_so400m_14" else 224
  model = nnx.eval_shape(
    lambda: dual_encoder.create(
      name, image_size=(side, side), context_length=64 if siglip else 77,
      vocab_size=32000 if siglip else 49408, rngs=nnx.Rngs(0),
    )
  )  # fmt: skip
  _, params = model_b.split(model)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=1)


def test_every_siglip_parameter_has_its_own_tensors():
  _, params = create("siglip", (64, 64))
  flat = params_lib.flatten(params)
  assert tensor_names.SIGLIP.keys() == {path for path in flat if params_lib.LAST not in path}
  used = [name for rule in tensor_names.SIGLIP.values() for name in rule.names]
  assert len(used) == len(set(used))


def test_a_size_of_another_family_is_another_size():
  clip = dataclasses.replace(OPEN_CLIP, family=families.CLIP)
  assert clip != OPEN_CLIP
  assert dual_encoder.names_of(dual_encoder.SIZES["openclip_vit_b_16"]) == ["openclip_vit_b_16"]
