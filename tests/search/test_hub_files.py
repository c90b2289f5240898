"""A model on the hub is fetched with its config, weights and the tokenizer of its kind."""

import pytest

from dgia_jax import hub
from dgia_jax.search import retriever

FILES = {
  "clip": ["config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer.json"],
  "siglip": ["config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"],
  "siglip2": ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
  "open_clip": ["open_clip_config.json", "open_clip_pytorch_model.bin", "vocab.json", "merges.txt"],
}


@pytest.mark.parametrize("kind", FILES)
def test_the_files_of_every_kind_are_complete(kind):
  needed = hub._complete_set(retriever._HUB_FILES, [*FILES[kind], "README.md"])
  assert needed and set(needed) <= set(FILES[kind])
  if kind.startswith("siglip"):
    assert "tokenizer_config.json" in needed


@pytest.mark.parametrize("kind", FILES)
def test_without_weights_nothing_is_fetched(kind):
  names = [name for name in FILES[kind] if "model." not in name and "model.bin" not in name]
  assert not hub._complete_set(retriever._HUB_FILES, names)


def test_how_images_are_prepared_is_asked_of_the_hub(monkeypatch, tmp_path):
  asked = {}
  monkeypatch.setattr(hub, "fetch", lambda *_, **options: asked.update(options) or tmp_path)
  assert retriever._hub_folder("owner/model", "--run") == tmp_path
  assert asked["also"] == ("preprocessor_config.json", "open_clip_config.json")
