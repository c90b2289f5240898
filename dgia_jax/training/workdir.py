"""A run's working directory: creates it, records its config and refuses a run that does not fit."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import distributed, files, older_names, remote, user_files
from dgia_jax.errors import UserError

CONFIG = "config.json"
RESULTS = "results.json"
CONTACT_SHEET = "contact_sheet.png"
TOKENIZER = "tokenizer"
# Say how a training uses identity labels, where it does: a text file, and a key of results.json.
LABELS_FILE = "uses_identity_labels.txt"
LABELS_KEY = "uses_identity_labels"
LOCK = ".lock"
_PATTERN_CHARACTERS = "*?["  # Orbax reads a path with one of them as a pattern


def resolve(workdir: pathlib.Path | str) -> pathlib.Path:
  """The path as given, with `~` replaced by the home directory.

  Raises:
    UserError: it is the home of an unknown user, or checkpoints could not be restored from it.
  """
  workdir = user_files.expanded(workdir, "--workdir")
  unusable = [c for c in _PATTERN_CHARACTERS if c in str(workdir.absolute())]
  if unusable:
    raise UserError(
      f"--workdir={workdir}: checkpoints cannot be restored from a path with {' '.join(unusable)};"
      " choose another name"
    )
  return workdir


def identity_labels(workdir: pathlib.Path | str) -> str:
  """How a run's training uses identity labels, such as "oracle relations"; "" if it does not.

  Raises:
    UserError: the file that says so cannot be read.
  """
  folder = pathlib.Path(workdir)
  try:
    return (folder / LABELS_FILE).read_text(encoding="utf-8").strip()
  except (FileNotFoundError, NotADirectoryError):
    pass
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{folder / LABELS_FILE} cannot be read ({error}): it says how this run uses identity labels,"
      ' such as "oracle relations"; write it again'
    ) from error
  with contextlib.suppress(OSError, ValueError, AttributeError):  # not yet, or damaged
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return str(results.get(LABELS_KEY, ""))
  return ""


def check_identity_labels(workdir: pathlib.Path | str, use: str) -> None:
  """Makes sure that a run is continued with the supervision that it was started with.

  Args:
    workdir: the run's working directory, which may be new.
    use: as `identity_labels`, of the training that is about to start.

  Raises:
    UserError: the folder holds a run that uses identity labels in another way.
  """
  if not is_claimed(workdir) or (stored := identity_labels(workdir)) == use:
    return
  if not stored:
    raise UserError(
      f"--workdir={workdir} holds a run that is not marked as using identity labels, and this"
      f" training uses them ({use}); choose another folder or, if an earlier release, which left no"
      f" mark, trained the run with them, write {use} into {pathlib.Path(workdir) / LABELS_FILE}"
    )
  asked = f"uses them as {use}" if use else "uses none"
  raise UserError(
    f"--workdir={workdir} holds a run that uses identity labels ({stored}), and this training"
    f" {asked}; choose another folder or delete this one"
  )


def create(workdir: pathlib.Path | str) -> pathlib.Path:
  """Creates `workdir` if needed and makes sure that this process can write there.

  Returns:
    The path as `resolve` gives it, which the functions below take.

  Raises:
    UserError: the folder cannot be written, or checkpoints could not be restored from it.
  """
  workdir = resolve(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK | os.X_OK):
      raise PermissionError("no permission to write")
  except OSError as error:
    raise UserError(f"--workdir={workdir}: cannot be written ({error}); choose another") from error
  return workdir


def check(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes sure that this config's run may use `workdir`.

  Raises:
    UserError: the folder holds a run of another config.
  """
  if not is_claimed(workdir):
    return
  if changed := config_lib.differences(config, read_config(workdir)):
    raise UserError(
      f"--workdir={workdir} holds a run with another config (differing: {', '.join(changed[:6])}"
      f"{', ...' if len(changed) > 6 else ''}); choose another folder or delete this one"
    )


@contextlib.contextmanager
def locked(workdir: pathlib.Path, notify: Callable[[str], None]) -> Iterator[None]:
  """Keeps other processes from training in `workdir` until the block ends or this process dies.

  Of several processes of one run, the first locks for all.

  Args:
    workdir: an existing folder.
    notify: receives one line if the file system has no locks.

  Raises:
    UserError: another process trains there.
  """
  if jax.process_index() != 0:
    yield
    return
  path = workdir / LOCK
  try:
    file = path.open("a+", encoding="utf-8")
  except OSError as error:
    raise UserError(f"--workdir={workdir}: {path} cannot be written ({error})") from error
  with file:
    try:
      files.lock(file)
    except BlockingIOError as error:
      raise UserError(
        f"--workdir={workdir}: {_holder(path)} is training there; wait until it ends, or choose"
        " another folder"
      ) from error
    except files.NoLocksError as error:
      notify(f"{path} cannot be locked here ({error.strerror}): make sure that no other process"
             " trains in this folder")  # fmt: skip
      yield
      return
    except OSError as error:
      raise UserError(f"--workdir={workdir}: {path} cannot be locked ({error})") from error
    holder = {
      "pid": os.getpid(),
      "host": socket.gethostname(),
      "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    file.truncate(0)
    file.write(json.dumps(holder) + "\n")
    file.flush()
    yield


def _holder(lock: pathlib.Path) -> str:
  """The process that holds the lock, as text."""
  try:
    holder = json.loads(lock.read_text(encoding="utf-8"))
    return f"process {holder['pid']} on {holder['host']}, started {holder['started']},"
  except (OSError, ValueError, KeyError, TypeError):
    return "another process"  # which has not written the file yet


def is_claimed(workdir: pathlib.Path | str, setting: str = "--workdir") -> bool:
  """Whether the folder belongs to a run, so that its config and vocabulary are fixed.

  Raises:
    UserError: the folder cannot be read; the error calls it `setting`.
  """
  return user_files.exists(user_files.expanded(workdir, setting) / CONFIG, setting)


def is_run(path: pathlib.Path | str) -> bool:
  """Whether a path is the working directory of a run, rather than weights in another format."""
  try:
    return {"model", "dataset"} <= read_config(path).keys()
  except (UserError, OSError):
    return False


def claim(workdir: pathlib.Path, config: ConfigDict, label_use: str = "") -> None:
  """Records the config in `workdir`, once every part of the run could be created.

  Process 0 writes; the others make sure that they see the file.

  Args:
    workdir: the run's working directory.
    config: the resolved config.
    label_use: how the training uses identity labels, which is recorded as well; "" if it does not.

  Raises:
    UserError: this process looks at another folder, or was started with another config, than
      process 0.
  """
  if not is_claimed(workdir) and jax.process_index() == 0:
    if label_use:  # first, because a run must not lack the mark
      files.write_text(workdir / LABELS_FILE, f"{label_use}\n")
    elif (workdir / LABELS_FILE).exists():  # of a training that did not begin
      files.write_text(workdir / LABELS_FILE, "")  # rather than deleted: buckets keep files
    files.write_json(workdir / CONFIG, config.to_dict())
  remote.publish(workdir)
  distributed.wait_for_all()
  remote.refresh(workdir)
  distributed.wait_until_visible(lambda: is_claimed(workdir), f"--workdir={workdir}")
  check(workdir, config)
  distributed.wait_for_all()


def read_config(workdir: pathlib.Path | str, setting: str = "--workdir") -> dict[str, Any]:
  """The config that a run was started with; errors call the folder `setting`.

  Raises:
    UserError: `workdir` holds no run, or its config.json is damaged.
  """
  path = user_files.expanded(workdir, setting) / CONFIG
  if not is_claimed(workdir, setting):
    raise UserError(f"{setting}={workdir}: holds no run ({CONFIG} is missing); train one first")
  try:
    content = user_files.read_json(path, setting)
  except UserError as error:
    raise UserError(f"{error}{_recovery(workdir)}") from error
  try:
    return older_names.current_config(content)
  except (AttributeError, TypeError, KeyError) as error:  # JSON, but not of a config
    raise UserError(f"{setting}: {path} is damaged ({error}){_recovery(workdir)}") from error


def _recovery(workdir: pathlib.Path | str) -> str:
  """How to continue a run whose config.json is damaged."""
  # Imported here: Orbax is slow to import, and this is needed after damage only.
  from dgia_jax.training import checkpoint

  if not checkpoint.steps_saved(workdir):
    return ""
  return (
    f"; its checkpoints are still usable: move {CONFIG} away and run the command that started this"
    " run, which writes the file again and continues"
  )
