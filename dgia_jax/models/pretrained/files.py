"""From a name or path to the tensors of a CLIP checkpoint, and what its config says about them."""

import dataclasses
import json
import pathlib

import numpy as np

from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import torch_file

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_TORCH_FILE = "pytorch_model.bin"


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
  """What was found: tensors by name in their own dtypes, and config.json ({} when none)."""

  tensors: dict[str, np.ndarray]
  config: dict


def read(name_or_path: str) -> CheckpointFiles:
  """Reads a checkpoint.

  Args:
    name_or_path: a Hugging Face folder, a torch file (OpenAI's ViT-B-16.pt, best.pth), or a name
      on the Hugging Face hub such as "openai/clip-vit-base-patch16".

  Raises:
    UserError: nothing is there, or it cannot be read.
  """
  path = pathlib.Path(name_or_path).expanduser()
  if path.is_dir():
    return _read_folder(path)
  if path.is_file():
    return CheckpointFiles(torch_file.read(path), {})
  return _read_folder(_hub_folder(name_or_path))


def _read_folder(folder: pathlib.Path) -> CheckpointFiles:
  config = _read_json(folder / CONFIG_FILE)
  if (folder / WEIGHTS_FILE).is_file():
    return CheckpointFiles(_read_safetensors(folder / WEIGHTS_FILE), config)
  if (folder / _INDEX_FILE).is_file():
    parts = sorted(set(_read_json(folder / _INDEX_FILE).get("weight_map", {}).values()))
    tensors = {}
    for part in parts:
      tensors |= _read_safetensors(folder / part)
    return CheckpointFiles(tensors, config)
  if (folder / _TORCH_FILE).is_file():
    return CheckpointFiles(torch_file.read(folder / _TORCH_FILE), config)
  raise UserError(f"pretrained={folder} holds neither {WEIGHTS_FILE} nor {_TORCH_FILE}")


def _read_json(path: pathlib.Path) -> dict:
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise UserError(f"pretrained: {path} is missing") from error
  except ValueError as error:
    raise UserError(f"pretrained: {path} is no JSON ({error})") from error
  if not isinstance(content, dict):
    raise UserError(f"pretrained: {path} does not hold a JSON object")
  return content


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  # Imported here: only those who load weights need the package.
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"pretrained: {path} cannot be read ({error})") from error


def _hub_folder(name: str) -> pathlib.Path:
  """The hub's cache folder of a model, fetched when it is not there yet."""
  try:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
  except ImportError as error:
    raise UserError(
      f"pretrained={name!r} is no file or folder here, and to look for it on the Hugging Face hub"
      " needs `pip install huggingface_hub`"
    ) from error

  def fetch(*files: str, local_files_only: bool = False) -> pathlib.Path:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        name, allow_patterns=[CONFIG_FILE, *files], local_files_only=local_files_only
      )
    )

  def complete(folder: pathlib.Path) -> bool:
    weights = (WEIGHTS_FILE, _INDEX_FILE, _TORCH_FILE)
    return any((folder / file).is_file() for file in weights)

  try:
    try:
      folder = fetch(local_files_only=True)
    except LocalEntryNotFoundError:
      folder = fetch("*.safetensors", _INDEX_FILE)
    if not complete(folder):
      folder = fetch("*.safetensors", _INDEX_FILE)
    # Some older models come as torch files only.
    return folder if complete(folder) else fetch(_TORCH_FILE)
  except Exception as error:  # the class depends on the network library that the hub is built on
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"pretrained={name!r} is no file or folder here and can't be fetched from the hub ({reason})"
    ) from error
