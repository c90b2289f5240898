"""Models on the Hugging Face hub: their files, from the local cache or downloaded; uploads."""

import fnmatch
import pathlib
from collections.abc import Iterable, Sequence

import huggingface_hub
from huggingface_hub.errors import (
  HfHubHTTPError,
  HFValidationError,
  LocalEntryNotFoundError,
  LocalTokenNotFoundError,
)

from dgia_jax.errors import UserError

_TIMEOUT_SECONDS = 5


def fetch(name: str, *file_sets: Sequence[str], setting: str, hint: str) -> pathlib.Path:
  """Returns the local folder of a model on the hub, with one set of its files complete.

  A set that is complete in the cache is used without network access.

  Args:
    name: of the model, such as "openai/clip-vit-base-patch16".
    *file_sets: alternatives, the preferred one first. Each lists the names of files that are
      needed together; "*" in a name matches anything.
    setting: that holds the name, for the error message.
    hint: what the user can do if the hub cannot be reached, for the error message.

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
    raise UserError(
      f"{setting}={name!r} is no file or folder here and can't be fetched from the hub"
      f" ({_reason(error)}); {hint}"
    ) from error


def check_name(name: str, setting: str) -> None:
  """Raises UserError unless a name is USER/NAME, as the hub accepts it for a new model."""
  try:
    if name.count("/") != 1:
      raise HFValidationError("no owner" if "/" not in name else "more than one slash")
    huggingface_hub.utils.validate_repo_id(name)
  except HFValidationError as error:
    raise UserError(
      f"{setting}={name!r} is no name of a model on the hub ({_reason(error)}); give USER/NAME, of"
      " letters, digits, '-', '_' and '.'"
    ) from error


def push(
  folder: pathlib.Path, name: str, file_names: Sequence[str], *, private: bool, setting: str
) -> str:
  """Uploads files of a folder in one commit, to a model that is created if absent.

  Args:
    folder: stays as it is.
    name: of the model, USER/NAME.
    file_names: of the files to upload; those that the folder lacks are removed from the model.
    private: create the model so that only its owner sees it.
    setting: that holds the name, for the error message.

  Returns:
    The address of the model.

  Raises:
    UserError: the hub does not answer or does not accept the upload, or `private` is asked of a
      model that everyone can see.
  """
  check_name(name, setting)
  api = huggingface_hub.HfApi()
  try:
    # Without --private the owner's default holds, which an organisation may have set to private.
    url = api.create_repo(name, private=private or None, exist_ok=True)
    if private and not api.model_info(name).private:
      raise UserError(
        f"{setting}={name!r} exists and is public, so nothing was uploaded; make it private on"
        " its page, or choose another name"
      )
    names = list(file_names)
    api.upload_folder(
      repo_id=name,
      folder_path=folder,
      allow_patterns=names,
      delete_patterns=names,
      commit_message="Upload model with dgia_jax",
    )
    return str(url)
  except UserError:
    raise
  except Exception as error:  # the class depends on the network library that the hub is built on
    if _is_login_error(error):
      hint = f"log in with `hf auth login`, with a token that may write to {name.split('/')[0]}"
    else:
      hint = "check the network and try again"
    raise UserError(
      f"{setting}={name!r} cannot be uploaded ({_reason(error)}); {hint}. {folder} stays"
    ) from error


def _is_login_error(error: Exception) -> bool:
  """Whether the hub asks for a token, or for one with more rights."""
  if isinstance(error, LocalTokenNotFoundError):
    return True
  return isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)


def _reason(error: Exception) -> str:
  return str(error).strip().split("\n")[0] or type(error).__name__


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
