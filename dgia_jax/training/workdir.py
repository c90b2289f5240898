"""The folder of a run: whose it is, and the config it was started with."""

import os
import pathlib
import time

import jax

from dgia_jax import config as config_lib
from dgia_jax import distributed, files, older_names, user_files
from dgia_jax.errors import UserError

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
CONTACT_SHEET = "contact_sheet.png"
TOKENIZER = "tokenizer"
VISIBLE_SECONDS = 90  # in which a network disk shows what another machine has written


def check(workdir, config):
  """Makes sure that `workdir` is, or can become, the folder of this config's run.

  Args:
    workdir: folder; made when absent.
    config: the resolved config.

  Raises:
    UserError: the folder cannot be written, or it holds a run of another config.
  """
  workdir = pathlib.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK | os.X_OK):
      raise PermissionError("no permission to write")
  except OSError as error:
    raise UserError(f"--workdir={workdir}: cannot be written ({error}); choose another") from error
  if not is_claimed(workdir):
    return
  if changed := config_lib.differences(config, read_config(workdir)):
    raise UserError(
      f"--workdir={workdir} holds a run with another config (differing: {', '.join(changed[:6])}"
      f"{', ...' if len(changed) > 6 else ''}); choose another folder or delete this one"
    )


def is_claimed(workdir):
  """Whether the folder belongs to a run; from then on its config and vocabulary are fixed."""
  return (pathlib.Path(workdir) / CONFIG).exists()


def is_run(path):
  """Whether a path is the folder of one of our runs, not of weights in another format."""
  try:
    return "model" in read_config(path) and "dataset" in read_config(path)
  except (UserError, OSError):
    return False


def claim(workdir, config):
  """Writes down whose folder this is. Called once everything of the run could be built.

  Of several processes the first writes; the others make sure that they see it.

  Args:
    workdir: folder that `check` accepted.
    config: the resolved config.

  Raises:
    UserError: this process looks at another folder, or was started with another config, than the
      first.
  """
  if not is_claimed(workdir) and jax.process_index() == 0:
    files.write_json(pathlib.Path(workdir) / CONFIG, config.to_dict())
  distributed.meet()
  end = time.time() + VISIBLE_SECONDS
  while not is_claimed(workdir):
    if time.time() > end:
      raise UserError(
        f"--workdir={workdir}: process {jax.process_index()} does not find there what process 0 has"
        " written: give a folder that all processes share"
      )
    time.sleep(0.1)
  check(workdir, config)
  distributed.meet()


def read_config(workdir, setting="--workdir"):
  """The config a run was started with, as a plain dict; errors call the folder `setting`.

  Raises:
    UserError: `workdir` holds no run, or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / CONFIG
  if not is_claimed(workdir):
    raise UserError(f"{setting}={workdir}: holds no run ({CONFIG} is missing); train one first")
  return older_names.current_config(user_files.read_json(path, setting))
