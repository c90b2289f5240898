"""OpenCLIP and SigLIP: transformers computes equal features; their checkpoints load strictly."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, families, pretrained
from dgia_jax.models.dual_encoder import Size, TowerSize
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained import tensor_names
from tests.helpers import model_b

OPEN_CLIP = Size(
  TowerSize(64, 3, 4), TowerSize(48, 2, 2), feature_width=32, patch_size=16,
  family=families.OPEN_CLIP,
)  # fmt: skip
# An inner width that is no multiple, as in so400m.
_TOWER = TowerSize(64, 3, 4, mlp_width=176)
SIGLIP = Size(_TOWER, _TOWER, feature_width=64, patch_size=16, family=families.SIGLIP)
SIZES = {"open_clip": OPEN_CLIP, "siglip": SIGLIP}
VOCAB = 300
LENGTH = {"open_clip": 77, "siglip": 64}


def create(name, image_size):
  """(graphdef, params) with random biases and scales, so that a swapped tensor is noticed."""
  model = model_b.create(image_size, SIZES[name], VOCAB, context_length=LENGTH[name])
  graphdef, params = model_b.split(model)
  leaves, structure = jax.tree.flatten(params)
  random = np.random.default_rng(0)
  leaves = [leaf + 0.05 * random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
  return graphdef, jax.tree.unflatten(structure, leaves)


def load(path, name, image_size, family=None):
  """Loads a checkpoint into a model of a size; returns the model."""
  model = nnx.eval_shape(
    lambda: model_b.create(image_size, SIZES[name], VOCAB, context_length=LENGTH[name])
  )
  graphdef, template = model_b.split(model)
  family = family or SIZES[name].family
  loaded = pretrained.load_pretrained(str(path), template, image_size=image_size, family=family)
  return nnx.merge(graphdef, loaded.params)


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


@pytest.mark.parametrize("image_size", [(96, 32), (64, 64)])
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


def test_open_clips_torch_file_alone_is_described_by_the_model(tmp_path, torch):
  _, params = create("open_clip", (64, 64))
  tensors = params_lib.write_tensors(params, tensor_names.OPENAI)
  state = {name: torch.tensor(array) for name, array in tensors.items()}
  torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
  loaded = load(tmp_path / "open_clip_pytorch_model.bin", "open_clip", (64, 64))
  np.testing.assert_array_equal(loaded.text.projection[...], params["text"]["projection"])


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
