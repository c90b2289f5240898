"""Files of models on the Hugging Face hub: from its local cache, or downloaded into it."""

import fnmatch
import pathlib
from collections.abc import Iterable, Sequence

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

from dgia_jax.errors import UserError

_TIMEOUT_SECONDS = 5


def fetch(name: str, *file_sets: Sequence[str], setting: str, mend: str) -> pathlib.Path:
  """Returns the local folder of a model on the hub, with one set of its files complete.

  A set that is complete in the cache is used without network access.

  Args:
    name: of the model, such as "openai/clip-vit-base-patch16".
    *file_sets: alternatives, the preferred one first. Each lists the names of files that are
      needed together; "*" in a name matches anything.
    setting: that holds the name, for the error message.
    mend: what the user can do if the hub cannot be reached, for the error message.

  Raises:
    UserError: the hub does not answer, or it knows no such model or no complete set of files.
  """
  try:
    folder = _cached_folder(name)
    if folder and _complete_set(file_sets, (path.name for path in folder.iterdir())):
      return folder
    # Downloads are retried for half a minute each. One short question shows if the hub answers.
    siblings = huggingface_hub.HfApi().model_info(name, timeout=_TIMEOUT_SECONDS).siblings or ()
    file_set = _complete_set(file_sets, [sibling.rfilename for sibling in siblings])
    if not file_set:
      wanted = " nor ".join(" and ".join(file_set) for file_set in file_sets)
      raise LookupError(f"the model has neither {wanted}")
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(file_set)))
  except Exception as error:  # the class depends on the network library that the hub is built on
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"{setting}={name!r} is no file or folder here and can't be fetched from the hub ({reason});"
      f" {mend}"
    ) from error


def _cached_folder(name: str) -> pathlib.Path | None:
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, local_files_only=True))
  except LocalEntryNotFoundError:
    return None


def _complete_set(file_sets: Iterable[Sequence[str]], names: Iterable[str]) -> Sequence[str] | None:
  """The first set of which every file is among `names`."""
  names = list(names)
  for file_set in file_sets:
    if all(fnmatch.filter(names, pattern) for pattern in file_set):
      return file_set
  return None
