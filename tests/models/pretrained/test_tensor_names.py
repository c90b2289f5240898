"""The naming convention of a checkpoint is recognised, and tensors change layout both ways."""

import numpy as np
import pytest

from dgia_jax.models.pretrained import tensor_names

LANDMARK = "visual.class_embedding"


@pytest.mark.parametrize("prefix", ["", "base_model.", "model.base_model.", "module."])
def test_prefixes_are_found(prefix):
  table, found_prefix = tensor_names.find_convention(
    [prefix + LANDMARK, "image_bank", "model.classifier"]
  )
  assert table is tensor_names.OPENAI and found_prefix == prefix


def test_hugging_face_names_are_found():
  table, prefix = tensor_names.find_convention(["vision_model.embeddings.class_embedding"])
  assert table is tensor_names.HUGGING_FACE and prefix == ""


def test_no_model_and_two_models_are_not_recognised():
  assert tensor_names.find_convention(["resnet.conv1.weight", "my" + LANDMARK]) is None
  assert tensor_names.find_convention(["model." + LANDMARK, "ema." + LANDMARK]) is None


@pytest.mark.parametrize(
  "layout, shape, checkpoint_shape",
  [
    ("same", (5, 4), (5, 4)),
    ("flat", (3, 2, 4), (24,)),
    ("linear", (8, 3, 2, 4), (24, 8)),
    ("linear_of_heads", (2, 4, 6), (6, 8)),
    ("conv", (5, 4, 3, 7), (7, 3, 5, 4)),
  ],
)
def test_writing_inverts_reading_in_every_layout(layout, shape, checkpoint_shape):
  rule = tensor_names.Rule(("name",), layout)
  parameter = np.arange(np.prod(shape)).reshape(shape)
  tensor = rule.write(parameter)["name"]
  assert tensor.shape == rule.checkpoint_shape(shape) == checkpoint_shape
  np.testing.assert_array_equal(rule.read(tensor, shape), parameter)


def test_linear_kernels_are_transposed():
  weight = np.arange(6).reshape(2, 3)  # torch: 3 features in, 2 out
  np.testing.assert_array_equal(tensor_names.Rule(("w",), "linear").read(weight, (3, 2)), weight.T)
