"""A shipped model is found by its name, before the hub and before a folder of that name."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from dgia_jax import files
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.models.pretrained import shipped
from tests.helpers.known_run import IMAGE_SIZE, make_model


def template(folder):
  model = make_model(tokenizer_lib.load_tokenizer(folder), seed=1)
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_the_name_stands_for_the_folder(shipped_mini):
  assert shipped.names() == ["mini"]
  assert pretrained.local_copy("mini", "--run") == shipped_mini
  for other in ("mini2", "./mini", "MINI", "", "openai/clip"):
    assert not pretrained.is_shipped(other)
    assert str(pretrained.local_copy(other, "--run")) == str(shipped.pathlib.Path(other))


def test_weights_load_by_name(shipped_mini, tmp_path, monkeypatch):
  (tmp_path / "here" / "mini").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "here")
  expected = template(shipped_mini)
  loaded = pretrained.load_pretrained("mini", expected, image_size=IMAGE_SIZE).params
  for actual, value in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, value, rtol=1e-3, atol=1e-3)
  with pytest.raises(UserError, match="mini holds neither model.safetensors"):
    pretrained.load_pretrained("./mini", expected, image_size=IMAGE_SIZE)


def test_a_model_of_another_size_is_named_in_one_line(shipped_mini):
  """The stand-in is of the size `tiny`."""
  model = nnx.eval_shape(
    lambda: dual_encoder.create(
      "small", image_size=(64, 32), context_length=16, vocab_size=300, rngs=nnx.Rngs(0)
    )
  )
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  with pytest.raises(UserError) as error:
    pretrained.load_pretrained("mini", params, image_size=IMAGE_SIZE)
  assert str(error.value) == (
    "pretrained=mini is a model of the size tiny, config.model.name one of another; give"
    " config.model.name=tiny"
  )


def test_the_shipped_mini_is_small_whole_and_documented():
  folder = pretrained.local_copy("mini", "--run")
  assert shipped.names() == ["mini"] and folder.parent == shipped.FOLDER
  assert (folder / "model.safetensors").stat().st_size <= 8 * 10**6
  for name in ("model.safetensors", "tokenizer.json"):
    assert f"  {name}\n" in (folder / files.CHECKSUMS).read_text()
    assert not files.differs_from_checksum(folder / name)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
  assert all(np.isfinite(tensor).all() for tensor in tensors.values())
  config = pretrained.read_config(folder)
  assert dual_encoder.names_of(config.size) == ["mini"] and config.image_size == (64, 32)
  card = (folder / "README.md").read_text()
  for text in ("Apache-2.0", "--config mini --workdir runs/mini", "Zero-shot", "seed=11"):
    assert text in card, text
