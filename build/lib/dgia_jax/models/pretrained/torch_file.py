"""Reads the tensors of a torch file, from `torch.save` or TorchScript, without torch.

Both formats are zip archives: `data.pkl` describes objects, `data/0`, `data/1`, ... hold raw
numbers. A pickle can name any function to be called, so this reader accepts only the few names that
describe tensors and plain containers, and refuses all others. A TorchScript archive, the form in
which OpenAI publishes CLIP, also contains code. It stays unread here: instances of its classes
become empty holders of their attributes, whereas `torch.jit.load` compiles the code and may run it.
For that reason, and to do without torch, this reader replaces `torch.load(weights_only=True)`,
which does not open TorchScript archives.
"""

import collections
import dataclasses
import functools
import io
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from dgia_jax import user_files
from dgia_jax.errors import UserError

_DTYPES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}

# Far above what any checkpoint needs; without limits a small file could fill the memory.
_MAX_PICKLE_BYTES = 256 * 2**20
_MAX_ENTRIES = 200_000


class _ScriptObject:
  """Any object of a TorchScript archive, with the attributes of the original."""


@dataclasses.dataclass(slots=True)
class _Tensor:
  """A tensor as the pickle describes it: a window into one of the archive's storages.

  The pickle supplies the fields, so their types are unknown until the tensor is read.
  """

  storage: Any  # ("storage", kind, key, device, length)
  offset: Any
  shape: Any
  strides: Any


def _read_tensor(tensor: _Tensor, archive: zipfile.ZipFile, root: str) -> np.ndarray:
  _, kind, key, _, _ = tensor.storage
  dtype = _DTYPES[kind]
  numbers = _read_member(archive, f"{root}/data/{key}")
  strides = tuple(step * dtype.itemsize for step in tensor.strides)
  # NumPy checks that the window is inside the storage.
  return np.ndarray(tensor.shape, dtype, numbers, tensor.offset * dtype.itemsize, strides)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """Reads a whole member, because zipfile compares the checksum only at the end."""
  member = archive.getinfo(name)
  # Numbers are never compressed, so no member can be much larger than the file.
  if member.compress_type != zipfile.ZIP_STORED and member.file_size > _MAX_PICKLE_BYTES:
    raise ValueError(f"{name} would be {member.file_size:,} bytes when decompressed")
  return archive.read(name)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
  return _Tensor(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
  return value


_ALLOWED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("collections", "Counter"): collections.OrderedDict,
  ("torch", "Size"): tuple,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): _first,
  # TorchScript marks typed lists and dicts with calls of these.
  ("torch.jit._pickle", "build_intlist"): _first,
  ("torch.jit._pickle", "build_doublelist"): _first,
  ("torch.jit._pickle", "build_boollist"): _first,
  ("torch.jit._pickle", "build_tensorlist"): _first,
  ("torch.jit._pickle", "restore_type_tag"): _first,
}


class _Refused(Exception):
  """The pickle names something that is neither a tensor nor a plain container."""


class _Unpickler(pickle.Unpickler):
  """Builds only plain containers and the placeholders above.

  A pickle can also set attributes of what it names, so it never gets hold of an object that
  outlives the reading.
  """

  def find_class(self, module: str, name: str) -> Any:
    if module == "torch" and name in _DTYPES:
      return name
    if module.split(".")[0] == "__torch__":
      return type("_ScriptObject", (_ScriptObject,), {})
    if (module, name) not in _ALLOWED:
      raise _Refused(f"{module}.{name}")
    allowed = _ALLOWED[module, name]
    return allowed if isinstance(allowed, type) else functools.partial(allowed)

  def persistent_load(self, description: Any) -> Any:
    return description


def read(path: pathlib.Path | str) -> dict[str, np.ndarray]:
  """Reads all tensors of a file: {"model.visual.proj": array, ...}.

  Args:
    path: a file that `torch.save` or `torch.jit.save` wrote, with torch 1.6 or later.

  Returns:
    Read-only arrays in the dtypes of the file; everything that is no tensor is left out.

  Raises:
    UserError: the file is damaged or older, or holds more than tensors and plain containers.
  """
  path = pathlib.Path(path)
  user_files.check_regular(path, "pretrained")
  try:
    with zipfile.ZipFile(path) as archive:
      roots = {name.split("/")[0] for name in archive.namelist()}
      (root,) = roots
      content = _unpickle(_read_member(archive, f"{root}/data.pkl"))
      return {name: _read_tensor(tensor, archive, root) for name, tensor in _tensors(content)}
  except _Refused as error:
    raise UserError(
      f"pretrained={path}: reading it would run {error}, which is refused; save only its"
      " state_dict (tensors in plain dicts)"
    ) from error
  except Exception as error:  # a damaged archive or pickle can raise almost anything
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"pretrained={path} is damaged, or no checkpoint of torch 1.6 or later ({reason})"
    ) from error


def _unpickle(pickled: bytes) -> Any:
  """Builds the object of a pickle whose numbers of bytes and entries are plausible."""
  for opcode, argument, _ in pickletools.genops(pickled):
    # The unpickler reserves memory for every entry of its memo up to the highest index.
    if (
      isinstance(argument, int)
      and opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
      and argument > len(pickled)
    ):
      raise ValueError(f"the pickle's memo has {argument:,} entries")
  return _Unpickler(io.BytesIO(pickled)).load()


def _tensors(root: Any) -> Iterator[tuple[str, _Tensor]]:
  """Yields (dotted name, tensor) for every tensor within nested dicts and objects."""
  num_entries = 0

  def visit(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, _Tensor]]:
    nonlocal num_entries
    num_entries += 1
    if num_entries > _MAX_ENTRIES:  # containers within themselves, or shared very often
      raise ValueError(f"more than {_MAX_ENTRIES:,} entries")
    if isinstance(value, _Tensor):
      yield ".".join(path), value
    elif isinstance(value, _ScriptObject):
      yield from visit(vars(value), path)
    elif isinstance(value, dict):
      for key, item in value.items():
        yield from visit(item, (*path, str(key)))

  return visit(root, ())
