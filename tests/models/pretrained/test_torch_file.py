"""Torch files are read without torch, equal to what torch reads; code in them is refused."""

import collections
import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import torch_file


def write_archive(path, pickled, storages=()):
  """Writes a file with the layout of torch's."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickled)
    for key, content in enumerate(storages):
      archive.writestr(f"archive/data/{key}", content)


def test_tensors_of_a_saved_checkpoint(tmp_path):
  torch = pytest.importorskip("torch")
  kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
  weights = {f"kind_{i}": (torch.rand(3, 4) * 9).to(kind) for i, kind in enumerate(kinds)}
  weights["transposed"] = torch.arange(12.0).reshape(3, 4).T
  weights["part"] = torch.arange(12.0)[5:9:2]
  weights["scalar"] = torch.tensor(2.5)
  weights["empty"] = torch.zeros(0, 3)
  weights["parameter"] = torch.nn.Parameter(torch.ones(2))
  state = collections.OrderedDict(weights)
  state._metadata = {"": {"version": 1}}
  torch.save({"model": state, "epoch": 40, "size": torch.Size([1])}, tmp_path / "best.pth")

  tensors = torch_file.read(tmp_path / "best.pth")
  assert tensors.keys() == {f"model.{name}" for name in weights}
  assert tensors["model.kind_3"].dtype == ml_dtypes.bfloat16
  for name, tensor in weights.items():
    actual = tensors[f"model.{name}"]
    assert actual.shape == tuple(tensor.shape)
    np.testing.assert_array_equal(actual.astype(np.float64), tensor.detach().double().numpy())


def test_tensors_of_a_torchscript_archive(tmp_path):
  torch = pytest.importorskip("torch")

  class Inner(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.weight = torch.nn.Parameter(torch.rand(2, 3).half())
      self.sizes = [1, 2, 3]

    def forward(self, x):
      return x * self.sizes[0]

  class Outer(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.blocks = torch.nn.Sequential(Inner(), Inner())
      self.register_buffer("table", torch.arange(4))

    def forward(self, x):
      return self.blocks(x)

  model = Outer()
  torch.jit.script(model).save(str(tmp_path / "model.pt"))
  tensors = torch_file.read(tmp_path / "model.pt")
  assert tensors.keys() == {"blocks.0.weight", "blocks.1.weight", "table"}
  for name, tensor in model.state_dict().items():
    np.testing.assert_array_equal(tensors[name], tensor.numpy())


class Harmful:
  """Is pickled as a call of `print`."""

  def __reduce__(self):
    return print, ("this must not be run",)


def test_a_pickle_that_calls_a_function_is_refused(tmp_path, capsys):
  write_archive(tmp_path / "best.pth", pickle.dumps({"model": Harmful()}, protocol=2))
  with pytest.raises(UserError, match=r"best\.pth.*print.*refused"):
    torch_file.read(tmp_path / "best.pth")
  assert capsys.readouterr().out == ""


class Window:
  """Is pickled as torch pickles a tensor: a window into storage 0."""

  def __init__(self, offset, shape, strides):
    self.arguments = (offset, shape, strides)


def pickled_window(*window):
  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      return ("storage", "FloatStorage", "0", "cpu", 4) if value is Window else None

    def reducer_override(self, value):
      return (print, (Window, *value.arguments)) if isinstance(value, Window) else NotImplemented

  file = io.BytesIO()
  Pickler(file, protocol=2).dump({"weight": Window(*window)})
  # Naming torch's function here would need torch.
  return file.getvalue().replace(b"c__builtin__\nprint\n", b"ctorch._utils\n_rebuild_tensor_v2\n")


def test_a_tensor_must_be_inside_its_storage(tmp_path):
  storage = np.arange(4, dtype=np.float32).tobytes()
  write_archive(tmp_path / "a.pt", pickled_window(1, (3,), (1,)), [storage])
  np.testing.assert_array_equal(torch_file.read(tmp_path / "a.pt")["weight"], [1, 2, 3])
  for window in ((2, (3,), (1,)), (0, (2, 2), (100, 1)), (-1, (1,), (1,)), (3, (2,), (-9,))):
    write_archive(tmp_path / "b.pt", pickled_window(*window), [storage])
    with pytest.raises(UserError, match=r"b\.pt is damaged"):
      torch_file.read(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_damaged_files_are_named(tmp_path, content):
  (tmp_path / "model.pt").write_bytes(content)
  with pytest.raises(UserError, match=r"model\.pt is damaged"):
    torch_file.read(tmp_path / "model.pt")


def test_a_cut_pickle_and_a_missing_storage_are_damage(tmp_path):
  whole = pickled_window(0, (4,), (1,))
  for pickled, storages in ((whole[:-9], [bytes(16)]), (whole, [])):
    write_archive(tmp_path / "model.pt", pickled, storages)
    with pytest.raises(UserError, match=r"model\.pt is damaged"):
      torch_file.read(tmp_path / "model.pt")


def test_every_wrong_bit_of_the_pickle_is_noticed(tmp_path):
  pickled, storage = pickled_window(0, (4,), (1,)), bytes(range(16))
  write_archive(tmp_path / "model.pt", pickled, [storage])
  sound = (tmp_path / "model.pt").read_bytes()
  for content in (pickled, storage):
    start = sound.index(content)
    for position in range(start, start + len(content)):
      damaged = bytearray(sound)
      damaged[position] ^= 1
      (tmp_path / "model.pt").write_bytes(damaged)
      with pytest.raises(UserError, match="model.pt is damaged.*CRC"):
        torch_file.read(tmp_path / "model.pt")


def test_a_compressed_member_has_a_largest_size(tmp_path, monkeypatch):
  with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", bytes(2000))
  monkeypatch.setattr(torch_file, "_MAX_PICKLE_BYTES", 1999)
  with pytest.raises(UserError, match="data.pkl would be 2,000 bytes when decompressed"):
    torch_file.read(tmp_path / "model.pt")


def test_an_unknown_compression_is_named(tmp_path):
  write_archive(tmp_path / "model.pt", pickle.dumps({}))
  content = bytearray((tmp_path / "model.pt").read_bytes())
  content[8] = content[content.index(b"PK\x01\x02") + 10] = 99  # the method, in both headers
  (tmp_path / "model.pt").write_bytes(content)
  with pytest.raises(UserError, match="model.pt is damaged.*compression"):
    torch_file.read(tmp_path / "model.pt")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
  "pickled",
  [
    b"\x80\x02}r\xff\xff\xff\x7f.",  # the memo's entry 2**31 - 1
    b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",  # a bytearray of 2**60 bytes
    b"}L" + b"9" * 5000 + b"L\nNs.",
  ],
)
def test_small_files_do_not_fill_the_memory(tmp_path, pickled):
  write_archive(tmp_path / "model.pt", pickled)
  with pytest.raises(UserError, match="model.pt is damaged"):
    torch_file.read(tmp_path / "model.pt")


@pytest.mark.timeout(60)
def test_containers_that_share_or_contain_themselves_end(tmp_path):
  shared = {}
  for _ in range(60):
    shared = {"a": shared, "b": shared}
  loop = {}
  loop["loop"] = loop
  for content in (shared, loop):
    write_archive(tmp_path / "model.pt", pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="model.pt is damaged"):
      torch_file.read(tmp_path / "model.pt")


def test_a_pickle_cannot_change_the_reader(tmp_path):
  # GLOBAL, then BUILD with a state for slots, which sets an attribute of the named function.
  pickled = b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}U\x0e__kwdefaults__}s\x86b."
  write_archive(tmp_path / "model.pt", pickled)
  with pytest.raises(UserError, match="model.pt is damaged"):
    torch_file.read(tmp_path / "model.pt")
  assert torch_file._first.__kwdefaults__ is None
