"""Models on the Hugging Face hub: their files, from the local cache or downloaded; uploads."""

import fnmatch
import pathlib
from collections.abc import Iterable, Sequence

import huggingface_hub
from absl import logging
from huggingface_hub.errors import (
  HfHubHTTPError,
  HFValidationError,
  LocalEntryNotFoundError,
  LocalTokenNotFoundError,
)

from dgia_jax import user_files
from dgia_jax.errors import UserError

_TIMEOUT_SECONDS = 5
_INDEX = ".index.json"  # end of the name of a file that lists weights in several files


def fetch(
  name: str,
  *file_sets: Sequence[str],
  also: Sequence[str] = (),
  setting: str,
  hint: str,
) -> pathlib.Path:
  """Returns the local folder of a model on the hub, with one set of its files complete.

  A set that is complete in the cache, with a file of `also`, is used without network access.

  Args:
    name: of the model, such as "openai/clip-vit-base-patch16".
    *file_sets: alternatives, the preferred one first. Each lists the names of files that are
      needed together; "*" in a name matches anything.
    also: names of files that say the same in different forms, all fetched where the model has
      them. A cached set without any of them is used only if the hub has none or is not reached.
    setting: that holds the name, for the error message.
    hint: what the user can do if the hub cannot be reached, for the error message.

  Raises:
    UserError: the hub does not answer, or it knows no such model or no complete set of files.
  """
  folder = cached_set = None
  try:
    folder = _cached_folder(name)
    cached_set = folder and _cached_set(file_sets, folder)
    if cached_set and (not also or any((folder / file).exists() for file in also)):
      return folder
    # Downloads are retried for half a minute each. One short question shows if the hub answers.
    siblings = huggingface_hub.HfApi().model_info(name, timeout=_TIMEOUT_SECONDS).siblings or ()
    names = [sibling.rfilename for sibling in siblings]
    extra = [file for file in also if file in names]
    if cached_set and not extra:
      return folder
    # The weights that are here already are not fetched a second time in another form.
    file_set = _complete_set([cached_set, *file_sets] if cached_set else file_sets, names)
    if not file_set:
      wanted = " nor ".join(" and ".join(file_set) for file_set in file_sets)
      raise LookupError(f"the model has neither {wanted}")
    wanted = list(dict.fromkeys([*file_set, *extra]))
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
  except Exception as error:  # the class depends on the network library that the hub is built on
    if cached_set:
      logging.warning(
        "%s=%r: its copy here has no %s, which cannot be fetched from the hub (%s)",
        setting, name, " or ".join(also), _reason(error),
      )  # fmt: skip
      return folder
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


def is_name(name: str) -> bool:
  """Whether a name is USER/NAME, as the hub accepts it."""
  try:
    check_name(name, "")
  except UserError:
    return False
  return True


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


def _cached_set(file_sets: Iterable[Sequence[str]], folder: pathlib.Path) -> Sequence[str] | None:
  """The first set that is complete in a folder, with every file that an index of it lists."""
  names = {path.name for path in folder.iterdir()}
  for file_set in file_sets:
    indices = [folder / name for name in file_set if name.endswith(_INDEX)]
    if _complete_set([file_set], names) and all(_listed_files(i) <= names for i in indices):
      return file_set
  return None


def _listed_files(index: pathlib.Path) -> set[str]:
  """The files that an index of weights lists; none if it is damaged, which its reader reports."""
  try:
    return set(map(str, user_files.read_json(index, "index")["weight_map"].values()))
  except (UserError, LookupError, AttributeError):
    return set()


def _complete_set(file_sets: Iterable[Sequence[str]], names: Iterable[str]) -> Sequence[str] | None:
  """The first set of which every file is among `names`."""
  names = list(names)
  for file_set in file_sets:
    if all(fnmatch.filter(names, pattern) for pattern in file_set):
      return file_set
  return None
