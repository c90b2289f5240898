"""Mutated weight files and configs: each one gives the correct weights or a one-line error.

Mutations are drawn from a seed. A wrong bit among the numbers of a safetensors file cannot be
noticed, because the format has no checksum, so only its header and its length are mutated.
"""

import json
import random
import string
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.models.pretrained import tensor_names
from tests.helpers import model_b

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(120)]

IMAGE_SIZE = (48, 16)
SIZE = dual_encoder.Size(
  image=dual_encoder.TowerSize(width=64, depth=1, heads=1),
  text=dual_encoder.TowerSize(width=64, depth=2, heads=1),
  feature_width=4,
  patch_size=8,
)
ODD_VALUES = (
  None, True, -1, 0, 3, 2**31, 2**63, 1e300, float("nan"), "", "64", "gelu", [], [8], [48, 16],
  [16, 48], {}, {"a": 1}, 10**4000,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
  """Parameters of a model of a few kilobytes."""
  model = model_b.create(IMAGE_SIZE, SIZE, vocab_size=20, context_length=8, rngs=nnx.Rngs(0))
  return jax.tree.map(np.asarray, model_b.split(model)[1])


@pytest.fixture
def folder(tmp_path, params):
  pretrained.write_folder(tmp_path, params, image_size=IMAGE_SIZE)
  return tmp_path


def check(path, params, exact=True):
  """Loads a checkpoint; returns whether it was accepted. Wrong weights and other errors fail."""
  try:
    loaded = pretrained.load_pretrained(str(path), params, image_size=IMAGE_SIZE).params
  except UserError as error:
    message = str(error)
    assert str(path) in message and "\n" not in message, message
    return False
  for actual, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0 if exact else 1e-5)
  return True


def mutate(content, rng, last=None):
  """One random damage, at a byte before `last`."""
  content = bytearray(content)
  start = rng.randrange(last or len(content))
  length = rng.choice((1, 1, 1, 2, 4, 8, 64))
  kind = rng.randrange(6)
  if kind < 2:
    content[start] ^= 1 << rng.randrange(8)
  elif kind == 2:
    content[start : start + length] = bytes(len(content[start : start + length]))
  elif kind == 3:
    del content[start : start + length]
  elif kind == 4:
    content[start:start] = rng.randbytes(length)
  else:
    del content[start:]
  return bytes(content)


def test_safetensors_headers(folder, params):
  rng = random.Random(0)
  path = folder / "model.safetensors"
  sound = path.read_bytes()
  header_end = 8 + int.from_bytes(sound[:8], "little")
  accepted = 0
  for _ in range(250):
    path.write_bytes(mutate(sound, rng, header_end))
    accepted += check(folder, params, exact=False)
  assert accepted < 125


@pytest.mark.parametrize("compressed", [False, True])
def test_torch_archives(tmp_path, params, compressed):
  torch = pytest.importorskip("torch")
  tensors = pretrained.write_tensors(params, tensor_names.OPENAI)
  path = tmp_path / "best.pth"
  torch.save({"model": {name: torch.tensor(array) for name, array in tensors.items()}}, path)
  if compressed:
    compress_pickle(path)
  sound = path.read_bytes()
  assert check(path, params)
  rng = random.Random(1)
  accepted = 0
  for _ in range(250):
    path.write_bytes(mutate(sound, rng))
    accepted += check(path, params)
  assert accepted < 100  # damage between the members changes nothing


def compress_pickle(path):
  """Rewrites an archive with a compressed data.pkl, as TorchScript has it."""
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in members.items():
      compression = zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED
      archive.writestr(name, content, compression)


def test_pickles_with_a_valid_checksum(tmp_path, params):
  torch = pytest.importorskip("torch")
  tensors = pretrained.write_tensors(params, tensor_names.OPENAI)
  path = tmp_path / "best.pth"
  torch.save({name: torch.tensor(array) for name, array in tensors.items()}, path)
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  (pickle_name,) = (name for name in members if name.endswith("data.pkl"))
  rng = random.Random(2)
  for _ in range(250):
    with zipfile.ZipFile(path, "w") as archive:
      for name, content in members.items():
        archive.writestr(name, mutate(content, rng) if name == pickle_name else content)
    # The checksum is right, so a tensor may now have another's numbers; it must not be an error
    # of another kind.
    try:
      pretrained.load_pretrained(str(path), params, image_size=IMAGE_SIZE)
    except UserError as error:
      assert str(path) in str(error)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_texts(folder, params, name):
  if "index" in name:
    split_weights(folder)
  rng = random.Random(3)
  path = folder / name
  sound = path.read_bytes()
  accepted = 0
  for _ in range(250):
    path.write_bytes(mutate(sound, rng))
    accepted += check(folder, params, exact=False)
  assert 0 < accepted < 250


def split_weights(folder):
  """Splits the weights into two files and lists them in an index."""
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
  for part in set(places.values()):
    members = {name: tensors[name] for name in tensors if places[name] == part}
    safetensors.numpy.save_file(members, folder / part)
  index = {"metadata": {}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_config_values(folder, params, name):
  rng = random.Random(4)
  path = folder / name
  sound = path.read_text()
  accepted = 0
  for _ in range(250):
    content = json.loads(sound)
    target = content
    while True:
      field = rng.choice(sorted(target))
      if not isinstance(target[field], dict) or rng.random() < 0.2:
        break
      target = target[field]
    if rng.random() < 0.2:
      del target[field]
    elif rng.random() < 0.1:
      target["".join(rng.choices(string.ascii_lowercase, k=8))] = target.pop(field)
    else:
      target[field] = rng.choice(ODD_VALUES)
    path.write_text(json.dumps(content))
    accepted += check(folder, params, exact=False)
  assert 0 < accepted < 250
