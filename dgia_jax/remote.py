"""Folders in a Google Cloud bucket, `gs://BUCKET/FOLDER`, as folders of this machine.

Programs of this package read and write local folders. For a bucket, `local_copy` downloads what is
only read, and `mirrored` gives a temporary folder whose files are uploaded by `publish` and when it
closes. Checkpoints take neither way: Orbax and TensorStore write and read them in the bucket, from
every process, in the folder that `origin` names.

An object of a bucket is replaced as a whole, so no reader gets half a file. Of several files, JSON
describes other files: it is uploaded last, in the order in which it was written.
"""

import contextlib
import datetime
import fnmatch
import hashlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator

from etils import epath

from dgia_jax import bucket, user_files
from dgia_jax.bucket import AnyPath, is_remote
from dgia_jax.errors import UserError

OWNER = ".owner.json"  # object that names the process which writes to a folder
_CHECKPOINTS, _TOKENIZER = "checkpoints/", "tokenizer/"  # folders of a run
# Of a run: too large to copy, or read in place, or of no use on another machine.
_NOT_COPIED = (f"{_CHECKPOINTS}*", "damaged/*", "profile/*", "events.out.tfevents.*", OWNER)
_NOT_PUBLISHED = (".*", "*/.*")  # locks, and files that are not complete
_ATTEMPTS = 3  # to copy a folder that changes meanwhile

_origins: dict[pathlib.Path, str] = {}  # local copy of a folder -> its address in a bucket
_mirrors: dict[pathlib.Path, "_Mirror"] = {}


def local_copy(path: str | os.PathLike, setting: str) -> pathlib.Path:
  """A local path with `~` expanded, or a copy of a remote file or folder in the local cache.

  A copy is made once for every content of the folder, is complete or absent, and may be shared.
  Checkpoints are left out: `origin` of the copy leads to them.

  Raises:
    UserError: there is no such remote file or folder, or it cannot be read; or the path is the home
      of an unknown user.
  """
  if not is_remote(path):
    return user_files.expanded(path, setting)
  url = bucket.checked(path, setting)
  with bucket.explained(url, setting):
    for _ in range(_ATTEMPTS):
      objects = _objects(url)
      if not objects:
        raise UserError(f"{setting}={url}: there is no such file or folder")
      content = json.dumps([url, sorted(objects.items())])
      home = bucket.cache_folder() / hashlib.sha256(content.encode()).hexdigest()[:16]
      copy = home / url.rpartition("/")[2]
      if not copy.exists() and not _download_as(home, copy.name, url, objects):
        continue
      _origins[copy] = url
      return copy
  raise UserError(f"{setting}={url}: changes while it is copied; wait until it is written")


@contextlib.contextmanager
def mirrored(
  path: str | os.PathLike,
  setting: str,
  *,
  writes: bool = True,
  claims: bool = True,
  deletes: bool = False,
  notify: Callable[[str], None] = lambda line: None,
) -> Iterator[pathlib.Path]:
  """A local folder to read and write in place of a folder in a bucket; a local path as it is.

  The folder starts with the files of the bucket's folder, except for checkpoints. What the block
  writes is written there by `publish`, and at the end of the block, whether or not it fails.

  Args:
    path: local folder, or gs://BUCKET/FOLDER, which need not exist.
    setting: the flag that holds it.
    writes: False on every process but the first: the folder only follows the bucket.
    claims: leave an object in the bucket, until the end, that names this process.
    deletes: what is deleted in the folder is deleted in the bucket, too. Not for trainings: they
      delete nothing, but a cleaner of old temporary files may, in a folder used for days.
    notify: receives one line, because a bucket has no locks.

  Raises:
    UserError: the path is the home of an unknown user, the bucket is missing or may not be written,
      or an error of the block, which then names the address in the bucket instead of the local
      folder.
  """
  if not is_remote(path):
    yield user_files.expanded(path, setting)
    return
  mirror = _Mirror(bucket.checked(path, setting), setting, writes, deletes)
  try:
    mirror.refresh()
    if claims and writes:
      notify(mirror.claim())
    try:
      yield mirror.folder
    except UserError as error:
      text = str(error).replace(str(mirror.folder), mirror.url)
      raise UserError(text) from error
    finally:
      mirror.publish()
      if claims and writes:
        mirror.release()
  finally:
    mirror.close()


def publish(folder: pathlib.Path | str | None) -> None:
  """Brings the bucket of a `mirrored` folder up to date; does nothing for any other folder.

  Raises:
    UserError: the bucket cannot be written.
  """
  if folder is not None and pathlib.Path(folder) in _mirrors:
    _mirrors[pathlib.Path(folder)].publish()


def refresh(folder: pathlib.Path | str) -> None:
  """Downloads the files of the bucket into a `mirrored` folder that only follows it."""
  mirror = _mirrors.get(pathlib.Path(folder))
  if mirror is not None and not mirror.writes:
    mirror.refresh()


def origin(folder: AnyPath | str) -> AnyPath:
  """The folder in a bucket that a local one stands for, or the local folder itself."""
  url = _origins.get(pathlib.Path(folder))
  return epath.Path(url) if url else pathlib.Path(folder)


class _Mirror:
  """A temporary folder with the small files of a folder in a bucket."""

  def __init__(self, url: str, setting: str, writes: bool, deletes: bool):
    self.url, self.setting, self.writes, self._deletes = url, setting, writes, deletes
    bucket.cache_folder().mkdir(parents=True, exist_ok=True)
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix="writing-", dir=bucket.cache_folder()))
    self._uploaded: dict[str, tuple[int, int]] = {}  # name -> size and time of the local file
    self._is_complete = True  # whether the bucket has everything that the folder has
    _origins[self.folder], _mirrors[self.folder] = url, self

  def refresh(self) -> None:
    """Downloads the files of the bucket that the folder lacks."""
    with bucket.explained(self.url, self.setting):
      objects = {name: o for name, o in _objects(self.url).items() if name}
      missing = [name for name in objects if not (self.folder / name).exists()]
      bucket.download(self.url, missing, self.folder)
    for name in missing:
      self._uploaded[name] = _version(self.folder / name)

  def publish(self) -> None:
    """Uploads new and changed files, then deletes those in the bucket that are deleted here."""
    if not self.writes:
      return
    self._is_complete = False
    with self._naming_the_folder(), bucket.explained(self.url, self.setting):
      for path in sorted(filter(pathlib.Path.is_file, self.folder.rglob("*")), key=_rank):
        name, version = str(path.relative_to(self.folder)), _version(path)
        if _matches(name, _NOT_PUBLISHED) or self._uploaded.get(name) == version:
          continue
        bucket.file_system().put_file(str(path), f"{self.url}/{name}")
        self._uploaded[name] = version
      # After the uploads: JSON that named a deleted file has been replaced by now.
      for name in self._deleted():
        with contextlib.suppress(FileNotFoundError):  # deleted there, too
          bucket.file_system().rm_file(f"{self.url}/{name}")
        del self._uploaded[name]
    self._is_complete = True

  def _deleted(self) -> list[str]:
    """Files to delete in the bucket; none if the folder is gone, which no program here deletes."""
    if not self._deletes or not self.folder.is_dir():
      return []
    return [name for name in self._uploaded if not (self.folder / name).exists()]

  def claim(self) -> str:
    """Writes the owner's object, which shows that the bucket can be written; returns a warning."""
    address = f"{self.url}/{OWNER}"
    warning = f"{self.url} cannot be locked: make sure that no other process writes there"
    self._owner = {
      "pid": os.getpid(),
      "host": socket.gethostname(),
      "started": datetime.datetime.now().astimezone().isoformat(timespec="microseconds"),
    }
    with bucket.explained(self.url, self.setting):
      if bucket.file_system().exists(address):
        previous = json.loads(bucket.file_system().cat_file(address))
        warning += (
          f"; process {previous['pid']} on {previous['host']}, started {previous['started']}, is"
          " writing, or was killed"
        )
      bucket.file_system().pipe_file(address, json.dumps(self._owner).encode())
    return warning

  def release(self) -> None:
    """Removes the owner's object, unless another process has replaced it."""
    address = f"{self.url}/{OWNER}"
    with bucket.explained(self.url, self.setting), contextlib.suppress(FileNotFoundError):
      if json.loads(bucket.file_system().cat_file(address)) == self._owner:
        bucket.file_system().rm_file(address)

  def close(self) -> None:
    """Removes the folder, unless it holds files that could not be uploaded."""
    del _origins[self.folder], _mirrors[self.folder]
    if self._is_complete:
      shutil.rmtree(self.folder, ignore_errors=True)

  @contextlib.contextmanager
  def _naming_the_folder(self) -> Iterator[None]:
    try:
      yield
    except UserError as error:
      raise UserError(f"{error}; files that were not uploaded are kept in {self.folder}") from error


def _objects(url: str) -> dict[str, list]:
  """The objects to copy, as `bucket.objects` gives them."""
  objects = bucket.objects(url)
  if any(name.startswith(_CHECKPOINTS) for name in objects):  # what users keep below a run stays
    is_needed = lambda name: "/" not in name or name.startswith(_TOKENIZER)
  else:
    is_needed = lambda name: True
  return {
    name: version
    for name, version in objects.items()
    if is_needed(name) and not _matches(name, _NOT_COPIED)
  }


def _download_as(home: pathlib.Path, name: str, url: str, objects: dict[str, list]) -> bool:
  """Downloads objects as `home`/`name`; False if they have changed meanwhile, and nothing is left.

  The copy appears under its name when it is complete.
  """
  home.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix="reading-", dir=home.parent) as partial:
    if list(objects) == [""]:
      bucket.file_system().get_file(url, f"{partial}/{name}")
    else:
      bucket.download(url, list(objects), pathlib.Path(partial, name))
    if _objects(url) != objects:
      return False
    home.mkdir(exist_ok=True)
    try:
      os.rename(f"{partial}/{name}", home / name)
    except OSError:
      if not (home / name).exists():  # else another process was first
        raise
  return True


def _version(path: pathlib.Path) -> tuple[int, int]:
  """Size and time of a file."""
  status = path.stat()
  return status.st_size, status.st_mtime_ns


def _rank(path: pathlib.Path) -> tuple[bool, int, str]:
  """The order of uploading: data, then the JSON that describes it, each as it was written."""
  return path.suffix == ".json", path.stat().st_mtime_ns, str(path)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
