"""Access to Google Cloud buckets by gcsfs: addresses, listings, downloads, and errors in one line.

`remote` builds folders on it.
"""

import contextlib
import importlib.util
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from dgia_jax import user_files
from dgia_jax.errors import UserError

AnyPath = pathlib.Path | epath.Path

_CACHE = "DGIA_JAX_REMOTE_CACHE"
_PATTERN_CHARACTERS = "*?["
# Where errors of the storage libraries come from; TensorStore raises ValueError with a status.
_LIBRARIES = ("gcsfs", "aiohttp", "google", "requests", "fsspec")
_STATUSES = (
  "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL",
  "RESOURCE_EXHAUSTED", "CANCELLED",
)  # fmt: skip


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is an address such as gs://bucket/run."""
  return "://" in os.fspath(path)


def check(path: str | os.PathLike, setting: str) -> None:
  """Makes sure that a path is local, or one that can be read here.

  Raises:
    UserError: another kind of address than gs://, one without a bucket, or a package is missing.
  """
  text = os.fspath(path)
  if not is_remote(text):
    return
  if not text.startswith("gs://"):
    raise UserError(
      f"{setting}={text}: of remote paths only gs:// is supported; mount the storage as a folder"
      " and give that folder"
    )
  if not text.removeprefix("gs://").partition("/")[0]:
    raise UserError(f"{setting}={text}: names no bucket; give gs://BUCKET/FOLDER")
  if unusable := [character for character in _PATTERN_CHARACTERS if character in text]:
    raise UserError(
      f"{setting}={text}: {' '.join(unusable)} would be read as a pattern; choose another name"
    )
  for package in ("gcsfs", "google.cloud.storage"):
    try:
      is_missing = importlib.util.find_spec(package) is None
    except ModuleNotFoundError:  # a parent package
      is_missing = True
    if is_missing:
      raise UserError(f'{setting}={text}: gs:// needs more packages: pip install "dgia_jax[gcs]"')


def checked(path: str | os.PathLike, setting: str) -> str:
  """The address without a slash at its end."""
  check(path, setting)
  return os.fspath(path).rstrip("/")


def file_system() -> Any:
  """The file system of buckets: the one that epath, and so Orbax, uses.

  It must not remember listings, since TensorStore and other processes write too.
  """
  import fsspec  # on use: most runs read no bucket

  fsspec.config.conf.setdefault("gs", {"use_listings_cache": False})
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints what it also raises
  return fsspec.filesystem("gcs", finalize_on_close=True)


def objects(url: str) -> dict[str, list]:
  """{name below the address: size and version} of the objects; "" names a single file."""
  prefix = url.removeprefix("gs://")
  files = file_system().find(url, detail=True)
  return {
    path.removeprefix(prefix).lstrip("/"): [entry["size"], entry.get("generation")]
    for path, entry in files.items()
    if not path.endswith("/")  # a folder that the web console has made
  }


def holds_files(path: str | os.PathLike, setting: str) -> bool:
  """Whether there is a file or a folder with files at an address in a bucket."""
  url = checked(path, setting)
  with explained(url, setting):
    return bool(objects(url))


def download(url: str, names: list[str], folder: pathlib.Path) -> None:
  """Downloads objects into a folder."""
  for name in names:
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
      raise UserError(f"{url}/{name}: leads out of its folder; rename the object")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    file_system().get_file(f"{url}/{name}", str(partial))
    partial.rename(target)


def move(folder: AnyPath, target: AnyPath) -> None:
  """Renames a folder; in a bucket, copies its objects and then deletes them."""
  if is_remote(folder):
    file_system().mv(os.fspath(folder), os.fspath(target), recursive=True)
  else:
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)


def tensorstore_base(folder: AnyPath) -> dict[str, str]:
  """TensorStore's description of a folder."""
  if not is_remote(folder):
    return {"driver": "file", "path": f"{folder}/"}
  name, _, path = os.fspath(folder).removeprefix("gs://").partition("/")
  return {"driver": "gcs", "bucket": name, "path": f"{path}/"}


@contextlib.contextmanager
def explained(path: AnyPath | str, setting: str = "") -> Iterator[None]:
  """Turns an error of the storage, if `path` is in a bucket, into a `UserError` of one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    _explain(path, error, setting)
    raise


def raise_if_unreachable(path: AnyPath, error: Exception) -> None:
  """Raises a `UserError` if `path` could not be read because of the storage, not of its content.

  A connection that was lost must not make a checkpoint look damaged.
  """
  if not isinstance(error, FileNotFoundError):
    _explain(path, error)


def _explain(path: AnyPath | str, error: Exception, setting: str = "") -> None:
  name = f"{setting}={path}" if setting else str(path)
  if not is_remote(path):
    return
  if _comes_from_storage(error):
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, FileNotFoundError):
      text = "no such bucket or object"
    raise UserError(
      f"{name}: Google Cloud Storage fails ({text}); check that the bucket exists, your permissions"
      " and the connection, then run the same command again"
    ) from error
  if isinstance(error, OSError):
    raise UserError(
      f"{name}: the local copy cannot be written ({error}); free some space in {cache_folder()},"
      f" or choose another folder by {_CACHE}"
    ) from error


def _comes_from_storage(error: BaseException | None) -> bool:
  """Whether an error, or one that led to it, comes from the storage and not from the content."""
  while error is not None:
    modules = (kind.__module__.partition(".")[0] for kind in type(error).__mro__)
    if isinstance(error, ConnectionError | TimeoutError) or any(m in _LIBRARIES for m in modules):
      return True
    if isinstance(error, OSError) and error.errno is None:  # as gcsfs raises them
      return True
    if any(status in str(error) for status in _STATUSES):
      return True
    error = error.__cause__ or error.__context__
  return False


def cache_folder() -> pathlib.Path:
  """`~/.cache/dgia_jax/remote`, unless `DGIA_JAX_REMOTE_CACHE` names another folder."""
  if chosen := os.environ.get(_CACHE):
    return user_files.expanded(chosen, _CACHE).absolute()
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache).absolute() / "dgia_jax" / "remote"
