"""Finds the files of a CLIP or SigLIP checkpoint and reads their tensors and config."""

import dataclasses
import pathlib

import numpy as np

from dgia_jax import files, hub, user_files
from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import (
  config_json,
  open_clip_config,
  preprocessor_config,
  shipped,
  torch_file,
)
from dgia_jax.models.pretrained.checkpoint_config import CheckpointConfig

WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_TORCH_FILE = "pytorch_model.bin"
# As open_clip names them.
_OPEN_CLIP_FILE = "open_clip_model.safetensors"
_OPEN_CLIP_TORCH_FILE = "open_clip_pytorch_model.bin"
# The files that a folder can hold its weights in, as a whole, in the order of preference.
_WEIGHTS_FILES = (WEIGHTS_FILE, _OPEN_CLIP_FILE, _TORCH_FILE, _OPEN_CLIP_TORCH_FILE)
# Config and weights of a model on the hub, the preferred form of the weights first.
HUB_FILES = (
  (config_json.FILE, WEIGHTS_FILE),
  (config_json.FILE, _INDEX_FILE, "*.safetensors"),
  (open_clip_config.FILE, _OPEN_CLIP_FILE),
  (config_json.FILE, _TORCH_FILE),  # some older models have no other
  (open_clip_config.FILE, _OPEN_CLIP_TORCH_FILE),
)
# Where a model says how images are prepared for it, if it does.
PREPROCESSING_FILES = (preprocessor_config.FILE, open_clip_config.FILE)


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
  """The content of a checkpoint.

  Attributes:
    tensors: by name, in the dtypes of the files.
    folder: the folder of the model, with its config; None for a single file without one.
  """

  tensors: dict[str, np.ndarray]
  folder: pathlib.Path | None


def read(name_or_path: str) -> CheckpointFiles:
  """Reads a checkpoint.

  Args:
    name_or_path: a folder of Hugging Face or open_clip, a file of torch (OpenAI's ViT-B-16.pt,
      best.pth) or safetensors, a shipped model such as "mini", or a name on the Hugging Face hub
      such as "openai/clip-vit-base-patch16".

  Raises:
    UserError: there is no such checkpoint, or it cannot be read.
  """
  path = shipped.local_copy(name_or_path, "pretrained")
  if user_files.exists(path, "pretrained"):
    if path.is_dir():
      return _read_folder(path)
    return CheckpointFiles(_read_file(path), _folder_of(path))
  folder = hub.fetch(
    name_or_path,
    *HUB_FILES,
    also=PREPROCESSING_FILES,
    setting="pretrained",
    hint="download its folder elsewhere and give the path",
  )
  return _read_folder(folder)


def read_config(folder: pathlib.Path | str) -> CheckpointConfig:
  """Reads the config of a folder: config.json, or else open_clip_config.json.

  Raises:
    UserError: it is missing or damaged, or describes no model of a kind that exists here.
  """
  folder = pathlib.Path(folder)
  if not (folder / config_json.FILE).exists() and (folder / open_clip_config.FILE).exists():
    return open_clip_config.read(folder)
  return config_json.read(folder)


def check_preprocessing(folder: pathlib.Path, stored: CheckpointConfig) -> None:
  """Compares how a folder's images are prepared, if a file says so, with how they are here.

  Args:
    folder: of the checkpoint.
    stored: its config, from `read_config`.

  Raises:
    UserError: they are prepared differently, or the file is damaged.
  """
  if (folder / preprocessor_config.FILE).exists():
    preprocessor_config.check(folder, stored)
  elif (folder / open_clip_config.FILE).exists():
    open_clip_config.check_preprocessing(folder, stored.size.family)


def read_resize(folder: pathlib.Path | str) -> str:
  """Reads the filter that a folder's images are resized with: "bilinear" or "bicubic" (default).

  Raises:
    UserError: the file that names it is damaged, or it names another.
  """
  folder = pathlib.Path(folder)
  if (folder / preprocessor_config.FILE).exists():
    return preprocessor_config.read_resize(folder)
  if (folder / open_clip_config.FILE).exists():
    return open_clip_config.read_resize(folder)
  return preprocessor_config.DEFAULT_RESIZE


def _read_folder(folder: pathlib.Path) -> CheckpointFiles:
  if (folder / WEIGHTS_FILE).exists():
    return CheckpointFiles(_read_safetensors(folder / WEIGHTS_FILE), folder)
  if (folder / _INDEX_FILE).exists():
    tensors = {}
    for path in _indexed_files(folder):
      tensors |= _read_safetensors(path)
    return CheckpointFiles(tensors, folder)
  for name in _WEIGHTS_FILES[1:]:
    if (folder / name).exists():
      return CheckpointFiles(_read_file(folder / name), folder)
  names = " nor ".join((WEIGHTS_FILE, _INDEX_FILE, *_WEIGHTS_FILES[1:]))
  raise UserError(f"pretrained={folder} holds neither {names}")


def _folder_of(path: pathlib.Path) -> pathlib.Path | None:
  """The folder of a file if that is a model's whose weights the file holds.

  A file of another name may belong to another model than the config beside it.
  """
  if path.name not in _WEIGHTS_FILES:
    return None
  try:
    read_config(path.parent)
  except UserError:  # of no CLIP or SigLIP, or absent
    return None
  return path.parent


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  return _read_safetensors(path) if path.suffix == ".safetensors" else torch_file.read(path)


def _indexed_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The weight files that a folder's index lists."""
  index = folder / _INDEX_FILE
  places = user_files.read_json(index, "pretrained").get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
    raise UserError(f"pretrained: {index} has no weight_map from tensors to files")
  names = sorted(set(places.values()))
  for name in names:
    if not name or pathlib.PurePath(name).name != name or "\\" in name or "\0" in name:
      raise UserError(
        f"pretrained: {index} lists {name!r}, which is no file of its folder; correct the entry"
      )
  return [folder / name for name in names]


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  # Imported on use: only those who load weights need the package.
  import safetensors.numpy

  user_files.check_regular(path, "pretrained")
  try:
    if files.differs_from_checksum(path):
      raise ValueError("its checksum differs")
    return safetensors.numpy.load_file(path)
  except (
    OSError, safetensors.SafetensorError, AttributeError, LookupError, MemoryError, TypeError,
    ValueError,
  ) as error:  # fmt: skip
    raise UserError(
      f"pretrained: {path} is damaged or no safetensors file ({error!r}); download it again"
    ) from error
