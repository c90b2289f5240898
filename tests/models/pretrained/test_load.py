"""CLIP checkpoints of every kind load, and those that do not fit are refused."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained import position_embedding, tensor_names
from tests.helpers import golden_data, model_b


@pytest.fixture(scope="module")
def template():
  _, params = model_b.split(nnx.eval_shape(model_b.create))
  return params


@pytest.fixture(scope="module")
def reference():
  return model_b.reference_model()[1]


def assert_equal(params, expected):
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, expected)))


def torch_state(torch, prefix=""):
  return {prefix + name: torch.tensor(array) for name, array in model_b.checkpoint().items()}


def load(path, template, image_size=model_b.IMAGE_SIZE):
  return pretrained.load_pretrained(str(path), template, image_size=image_size)


def test_the_released_programs_checkpoint(tmp_path, template, reference):
  torch = pytest.importorskip("torch")
  state = torch_state(torch, "base_model.")
  state["image_bank"] = torch.zeros(24, 512)
  state["base_model.logit_scale"] = torch.tensor(4.6)
  optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5}]}
  torch.save({"model": state, "optimizer": optimizer, "epoch": 7}, tmp_path / "best.pth")
  loaded = load(tmp_path / "best.pth", template)
  assert_equal(loaded.params, reference)
  assert loaded.dropped == (
    "model.base_model.logit_scale", "model.image_bank", "optimizer.state.0.exp_avg",
  )  # fmt: skip


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_person_pretrained_checkpoints_with_heads(tmp_path, template, reference, wrapper):
  """The form of NAM, HAM and GA-DMS: IRRA's model, half of it in float16, saved while training."""
  torch = pytest.importorskip("torch")
  state = torch_state(torch, f"{wrapper}base_model.")
  for head in ("classifier", "cross_attn.out_proj", "mlm_head.dense", "mlm_head.ln", "ln_post"):
    state[f"{wrapper}{head}.weight"] = torch.zeros(4, 4, dtype=torch.float16)
  state[f"{wrapper}cross_modal_transformer.resblocks.0.ln_1.weight"] = torch.zeros(4)
  checkpoint = {
    "model": state,
    "optimizer": {"state": {k: {"exp_avg": torch.zeros(3)} for k in range(20)}},
    "scheduler": {"milestones": (20, 50), "gamma": 0.1, "mode": "cosine", "last_epoch": 60},
    "epoch": 60,
  }
  torch.save(checkpoint, tmp_path / "best.pth")
  loaded = load(tmp_path / "best.pth", template)
  assert_equal(loaded.params, reference)
  assert f"model.{wrapper}mlm_head.dense.weight" in loaded.dropped and len(loaded.dropped) == 26


def test_a_resized_checkpoint_of_the_released_program_keeps_its_positions(tmp_path, template):
  torch = pytest.importorskip("torch")
  state = torch_state(torch)
  table = golden_data.arrays("p11_fwd_B")["visual.positional_embedding_after_load"]
  state["visual.positional_embedding"] = torch.tensor(table)
  torch.save(state, tmp_path / "best.pth")
  loaded = load(tmp_path / "best.pth", template)
  np.testing.assert_array_equal(loaded.params["image"]["position_embedding"], table)


def test_openais_archive(tmp_path, template, reference):
  torch = pytest.importorskip("torch")

  class Module(torch.nn.Module):
    """A tree of modules, built below so that its state has the names of the checkpoint."""

    def forward(self, x):
      return x

  root = Module()
  for name, tensor in torch_state(torch).items():
    *parents, last = name.split(".")
    module = root
    for parent in parents:
      if not hasattr(module, parent):
        setattr(module, parent, Module())
      module = getattr(module, parent)
    module.register_parameter(last, torch.nn.Parameter(tensor))
  for name, value in {"input_resolution": 64, "context_length": 77, "vocab_size": 1000}.items():
    root.register_buffer(name, torch.tensor(value))
  torch.jit.trace(root, torch.zeros(1)).save(str(tmp_path / "ViT.pt"))
  loaded = load(tmp_path / "ViT.pt", template)
  assert_equal(loaded.params, reference)
  assert loaded.dropped == ("context_length", "input_resolution", "vocab_size")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_model_with_random_weights(tmp_path, dtype):
  """Random weights of transformers, loaded here, give the features that transformers computes."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
  theirs = transformers.CLIPModel(
    transformers.CLIPConfig(
      projection_dim=48,
      text_config={**tower, "num_hidden_layers": 3, "vocab_size": 500, "eos_token_id": 499},
      vision_config={**tower, "num_hidden_layers": 2, "image_size": 64, "patch_size": 16},
    )
  ).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():  # initial biases are zero, which would hide mistakes
      parameter.add_(0.02 * torch.randn_like(parameter))
  theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path)
  theirs.float()
  size = dual_encoder.Size(
    dual_encoder.TowerSize(64, 2, 2),
    dual_encoder.TowerSize(64, 3, 2),
    feature_width=48,
    patch_size=16,
  )
  graphdef, params = model_b.split(model_b.create((64, 64), size, vocab_size=500))
  ours = nnx.merge(graphdef, load(tmp_path, params, image_size=(64, 64)).params)
  pixels, tokens = model_b.inputs(image_size=(64, 64), vocab_size=500)
  with torch.no_grad():
    image = theirs.get_image_features(torch.tensor(np.array(pixels)).permute(0, 3, 1, 2))
    text = theirs.get_text_features(torch.tensor(np.array(tokens), dtype=torch.long))
  for actual, expected in (
    (ours.encode_image(pixels), image.pooler_output.numpy()),
    (ours.encode_text(tokens), text.pooler_output.numpy()),
  ):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture
def folder(tmp_path, reference):
  pretrained.write_folder(tmp_path, reference, image_size=model_b.IMAGE_SIZE)
  return tmp_path


def edit_config(folder, **changes):
  config = json.loads((folder / "config.json").read_text())
  for section, fields in changes.items():
    config[section] |= fields
  (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
  "image_size, grid",
  [((64, 48), (4, 3)), ((32, 96), (2, 6))],
  ids=["another size", "another shape with as many patches"],
)
def test_positions_of_another_grid_are_resized(folder, reference, image_size, grid):
  _, other = model_b.split(nnx.eval_shape(lambda: model_b.create(image_size=image_size)))
  loaded = load(folder, other, image_size=image_size)
  expected = position_embedding.resize(reference["image"]["position_embedding"], (6, 2), grid)
  np.testing.assert_allclose(loaded.params["image"]["position_embedding"], expected, atol=1e-6)


def test_one_line_lists_everything_that_does_not_fit(folder):
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  del tensors["visual_projection.weight"]
  tensors["text_projection.weight"] = np.zeros((3, 3), np.float32)
  tensors["text_model.extra"] = np.zeros(1, np.float32)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  edit_config(folder, text_config={"num_attention_heads": 4, "hidden_act": "gelu"})
  _, params = model_b.split(nnx.eval_shape(model_b.create))
  with pytest.raises(UserError) as error:
    load(folder, params)
  message = str(error.value)
  for part in (
    "model.name",
    "its text tower has 4 attention heads, the model 2",
    "text_config.hidden_act in its config.json is 'gelu', not 'quick_gelu'",
    "visual_projection.weight (512, 128) is missing",
    "text_projection.weight is (3, 3), the model needs (512, 128)",
    "text_model.extra has no place in the model",
  ):
    assert part in message
  assert "\n" not in message


def test_a_model_of_another_size_is_refused(folder):
  size = dual_encoder.SIZES["tiny"]
  _, tiny = model_b.split(nnx.eval_shape(lambda: model_b.create((64, 32), size)))
  message = (
    r"does not fit model\.name.*out_proj\.bias is \(128,\), the model needs \(64,\)"
    r".*; and \d+ more$"
  )
  with pytest.raises(UserError, match=message):
    load(folder, tiny, image_size=(64, 32))


def test_a_checkpoint_of_something_else_is_refused(folder, template):
  safetensors.numpy.save_file({"fc.weight": np.zeros(2)}, folder / "model.safetensors")
  with pytest.raises(UserError, match="holds no CLIP weights"):
    load(folder, template)


def edit_tensor(folder, name, change):
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  tensors[name] = change(tensors[name].copy())
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def set_last(value):
  def change(tensor):
    tensor.flat[-1] = value
    return tensor

  return change


@pytest.mark.parametrize(
  "change, problem",
  [
    (set_last(np.nan), "holds NaN or infinity"),
    (set_last(-np.inf), "holds NaN or infinity"),
    (lambda tensor: np.full(tensor.shape, 1e300), "holds NaN or infinity"),
    (lambda tensor: tensor.astype(np.int32), "has dtype int32, not a floating-point one"),
  ],
)
def test_tensors_of_other_than_finite_numbers_are_named(folder, template, change, problem):
  edit_tensor(folder, "visual_projection.weight", change)
  with pytest.raises(UserError, match=f"visual_projection.weight {problem}"):
    load(folder, template)


def test_position_tables_of_integers_are_refused(folder, template):
  name = "vision_model.embeddings.position_embedding.weight"
  edit_tensor(folder, name, lambda table: table.astype(np.int32))
  with pytest.raises(UserError, match=f"{name} "):
    load(folder, template)


def test_a_position_table_must_have_the_grid_of_its_config(folder, template):
  edit_config(folder, vision_config={"patch_size": 8})
  message = "position_embedding.weight has 37 positions, .* in its config.json need 145"
  with pytest.raises(UserError, match=message):
    load(folder, template)


@pytest.mark.parametrize("rows", [1, 12, 18])
def test_a_position_table_without_a_config_must_be_a_square(tmp_path, template, rows):
  torch = pytest.importorskip("torch")
  state = torch_state(torch)
  state["visual.positional_embedding"] = torch.zeros(rows, 128)
  torch.save(state, tmp_path / "best.pth")
  message = f"visual.positional_embedding has {rows} positions, .* no class token and square grid"
  with pytest.raises(UserError, match=message):
    load(tmp_path / "best.pth", template)


def edit_preprocessor(folder, **fields):
  path = folder / "preprocessor_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
  "fields",
  [
    {"image_mean": [0.5, 0.5, 0.5]},
    {"image_std": 1},
    {"image_std": "0.2"},
    {"do_normalize": False},
    {"rescale_factor": 1},
    {"size": {"height": 32, "width": 96}},
    {"size": {"height": "96", "width": 32}},
  ],
)
def test_images_must_be_prepared_as_here(folder, template, fields):
  edit_preprocessor(folder, **fields)
  with pytest.raises(UserError, match=rf"preprocessor_config\.json: ({next(iter(fields))}|images)"):
    load(folder, template)


def test_openais_preprocessor_is_accepted(folder, reference, template):
  edit_config(folder, vision_config={"trained_image_size": [96, 32]})
  content = {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "resample": 3,
             "image_mean": [0.4815, 0.4578, 0.4082], "size": 224}  # fmt: skip
  (folder / "preprocessor_config.json").write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"images are 224 x 224, and \(96, 32\) in config.json"):
    load(folder, template)
  (folder / "preprocessor_config.json").unlink()
  load(folder, template)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_files_that_are_not_regular_are_not_opened(folder, template, name):
  (folder / name).unlink()
  os.mkfifo(folder / name)
  with pytest.raises(UserError, match=f"{name} is not a regular file"):
    load(folder, template)
  with pytest.raises(UserError, match="not a regular file"):
    load("/dev/zero", template)


def test_a_git_lfs_pointer_is_recognised(folder, template):
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 598641023\n"
  for name in ("model.safetensors", "best.pth"):
    (folder / name).write_text(pointer)
  for path in (folder, folder / "best.pth"):
    with pytest.raises(UserError, match="is only a Git LFS pointer .*; run `git lfs pull`"):
      load(path, template)


def save_file(path, size, image_size, positions=None, prefix="", **more):
  """Writes one file with OpenAI's names and random weights; returns the model's parameters."""
  _, params = model_b.split(model_b.create(image_size, size))
  tensors = params_lib.write_tensors(params, tensor_names.OPENAI)
  if positions is not None:
    tensors["visual.positional_embedding"] = positions
  tensors = {prefix + name: tensor for name, tensor in tensors.items()} | more
  safetensors.numpy.save_file(tensors, path)
  return params


def test_a_file_of_a_named_size_has_the_heads_of_its_name(tmp_path):
  """32 numbers per head, as in vit_h_14's image tower 80; OpenAI's models have 64."""
  path, size = tmp_path / "tiny.safetensors", dual_encoder.SIZES["tiny"]
  params = save_file(path, size, (64, 32))
  assert_equal(load(path, params, (64, 32)).params, params)


def test_a_file_of_an_unnamed_size_has_the_heads_of_openais_models(tmp_path):
  size = dataclasses.replace(dual_encoder.SIZES["tiny"], feature_width=32)
  params = save_file(tmp_path / "file.safetensors", size, (64, 32))
  with pytest.raises(UserError, match="its image tower has 1 attention heads, the model 2"):
    load(tmp_path / "file.safetensors", params, (64, 32))


@pytest.mark.parametrize(
  "prefix, resolution, is_square",
  [("", 64, True), ("", None, True), ("model.base_model.", None, False)],
  ids=["OpenAI's archive", "published", "of the released program"],
)
def test_as_many_patches_can_be_a_square_or_the_models_grid(
  tmp_path, prefix, resolution, is_square
):
  """16 patches: 4 x 4 of images of 64 x 64, 8 x 2 of 128 x 32."""
  table = np.random.default_rng(0).standard_normal((17, 128), np.float32)
  more = {} if resolution is None else {f"{prefix}input_resolution": np.array(resolution)}
  path = tmp_path / "file.safetensors"
  params = save_file(path, model_b.SIZE, (128, 32), table, prefix, **more)
  expected = position_embedding.resize(table, (4, 4), (8, 2)) if is_square else table
  loaded = load(path, params, (128, 32)).params["image"]["position_embedding"]
  np.testing.assert_array_equal(loaded, expected)


def test_a_file_that_does_not_say_which_grid_it_has_is_refused(tmp_path):
  path = tmp_path / "file.safetensors"
  params = save_file(path, model_b.SIZE, (128, 32), prefix="state_dict.module.")
  message = "has 17 positions, which can be a grid of 4 x 4 or of 8 x 2: the file does not say"
  with pytest.raises(UserError, match=message):
    load(path, params, (128, 32))
  _, square = model_b.split(nnx.eval_shape(lambda: model_b.create((64, 64))))
  load(path, square, (64, 64))


def test_a_folder_says_which_grid_it_has(tmp_path):
  _, params = model_b.split(model_b.create((128, 32)))
  pretrained.write_folder(tmp_path, params, image_size=(128, 32))
  loaded = load(tmp_path, params, (128, 32)).params["image"]["position_embedding"]
  np.testing.assert_allclose(loaded, params["image"]["position_embedding"], rtol=0, atol=1e-6)


def test_a_file_has_the_grid_of_the_config_beside_it(tmp_path):
  """A table written for oblong images is mapped back as transformers does, not just resized."""
  _, params = model_b.split(model_b.create((128, 32)))
  pretrained.write_folder(tmp_path, params, image_size=(128, 32))
  loaded = load(tmp_path / "model.safetensors", params, (128, 32)).params["image"]
  np.testing.assert_allclose(
    loaded["position_embedding"], params["image"]["position_embedding"], rtol=0, atol=1e-6
  )


def test_the_config_of_another_program_beside_a_file_is_ignored(tmp_path):
  params = save_file(tmp_path / "model.safetensors", model_b.SIZE, (64, 64))
  (tmp_path / "config.json").write_text('{"model_type": "t5"}')
  assert_equal(load(tmp_path / "model.safetensors", params, (64, 64)).params, params)


def test_a_file_of_another_name_is_not_described_by_the_config_beside_it(tmp_path):
  """Such as the checkpoint of a program that started from the model of the folder."""
  _, published = model_b.split(model_b.create((64, 64)))
  pretrained.write_folder(tmp_path, published, image_size=(64, 64))
  params = save_file(tmp_path / "best.safetensors", model_b.SIZE, (96, 32))
  assert_equal(load(tmp_path / "best.safetensors", params, (96, 32)).params, params)
