"""Digests are those of the whole array, although nothing ever holds the whole array."""

import hashlib
import zlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dgia_jax import distributed, sharding
from dgia_jax.training import array_digests, crc32
from tests.helpers.meshes import mesh_of

# Shapes that the axes of a mesh of eight divide, and what they are split over.
ARRAYS = {
  "bank": ((48, 5), np.float32, P(("data", "fsdp", "tensor"))),
  "by_columns": ((7, 6, 8), np.float32, P(None, None, ("fsdp", "tensor"))),
  "by_both": ((6, 3, 8), np.int32, P("fsdp", None, "tensor")),
  "half": ((16,), np.float16, P("tensor")),
  "copied": ((9, 2), np.uint8, P()),
  "scalar": ((), np.int32, P()),
  "empty": ((0, 4), np.float32, P()),
}

# As release 0.2.0 computed them.
CHECKSUMS = {"a": "963e6b36", "b": "15f3736a"}
DIGEST = "23737792a0300e80d81b6eebec9496736b9eb0e636161e83ec385fe1da043085"


def on_host():
  rng = np.random.default_rng(0)
  return {
    name: rng.integers(0, 200, shape).astype(dtype) for name, (shape, dtype, _) in ARRAYS.items()
  }


def on_mesh(*sizes):
  mesh = mesh_of(*sizes)
  layouts = {name: jax.NamedSharding(mesh, spec) for name, (_, _, spec) in ARRAYS.items()}
  return sharding.place(on_host(), layouts)


def plain_digest(arrays):
  total = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    total.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
  return total.hexdigest()


def plain_checksums(arrays):
  content = lambda array: f"{array.dtype} {array.shape}".encode() + array.tobytes()
  return {name: f"{zlib.crc32(content(array)):08x}" for name, array in arrays.items()}


@pytest.mark.parametrize("block_bytes", [1, 50, 2**24])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_any_mesh_gives_the_digests_of_the_whole_arrays(monkeypatch, sizes, block_bytes):
  monkeypatch.setattr(array_digests, "BLOCK_BYTES", block_bytes)
  arrays, expected = on_mesh(*sizes), on_host()
  assert array_digests.checksums(arrays) == plain_checksums(expected)
  assert array_digests.digest_of_arrays(arrays) == plain_digest(expected)
  assert array_digests.checksums(expected) == plain_checksums(expected)
  assert array_digests.digest_of_arrays(expected) == plain_digest(expected)


def test_digests_of_earlier_releases_stay_the_same():
  arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.int32(7)}
  assert array_digests.checksums(arrays) == CHECKSUMS
  assert array_digests.digest_of_arrays(arrays) == DIGEST


@pytest.mark.parametrize("num_rows", [1, 41, 48, 60])
def test_rows_of_padding_are_left_out(num_rows):
  bank = on_host()["bank"]
  digest = array_digests.digest_of_arrays({"bank": on_mesh(2, 2, 2)["bank"]}, {"bank": num_rows})
  assert digest == plain_digest({"bank": bank[:num_rows]})


class Processes:
  """Two processes, one after the other, each with every second shard of a mesh of eight."""

  def __init__(self, monkeypatch):
    self.number, self.sent, self.received = 0, [[], []], []
    parts = array_digests._parts

    def own_parts(*arguments):
      whole = parts(*arguments)
      if len(whole.shards) == 1:
        return whole
      return whole._replace(shards=whole.shards[self.number :: 2], are_all=False)

    monkeypatch.setattr(array_digests, "_parts", own_parts)
    monkeypatch.setattr(distributed, "from_every_process", lambda a: self._exchange(a, np.stack))
    monkeypatch.setattr(distributed, "summed", lambda a: self._exchange(a, sum))

  def _exchange(self, array, combine):
    self.sent[self.number].append(array)
    return combine(self.received.pop(0) if self.received else [array])

  def run(self, function):
    """What the second process gets; the first one only sends."""
    function()
    self.number = 1
    function()
    self.received = list(zip(*self.sent, strict=True))
    return function()


@pytest.mark.parametrize("block_bytes", [1, 50, 2**24])
def test_processes_exchange_numbers_and_blocks_but_no_array(monkeypatch, block_bytes):
  monkeypatch.setattr(array_digests, "BLOCK_BYTES", block_bytes)
  arrays, expected = on_mesh(2, 2, 2), on_host()
  with monkeypatch.context() as patch:
    processes = Processes(patch)
    checksums = processes.run(lambda: array_digests.checksums(arrays))
    assert checksums == plain_checksums(expected)
    assert [array.nbytes for array in processes.sent[0]] == [4 * 4]  # of four arrays that are split
  with monkeypatch.context() as patch:
    processes = Processes(patch)
    assert processes.run(lambda: array_digests.digest_of_arrays(arrays)) == plain_digest(expected)
    row_bytes = 6 * 8 * 4  # of the array with the longest rows
    assert max(array.nbytes for array in processes.sent[0]) <= max(block_bytes, row_bytes)


def test_a_crc_is_put_together_from_its_parts():
  content = np.random.default_rng(0).integers(0, 256, 1000, np.uint8).tobytes()
  value = 0
  for start, stop in ((0, 1), (1, 700), (700, 700), (700, 1000)):
    value ^= crc32.shifted(crc32.remainder(content[start:stop]), len(content) - stop)
  assert crc32.append(zlib.crc32(b"header"), value, len(content)) == zlib.crc32(b"header" + content)
  assert crc32.remainder(bytes(9)) == 0
