"""The folder of a run: whose it is, and the config it was started with."""

import json
import os
import pathlib

from dgia_jax import config as config_lib
from dgia_jax import logs
from dgia_jax.errors import UserError

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
CONTACT_SHEET = "contact_sheet.png"
TOKENIZER = "tokenizer"


def claim(workdir, config):
  """Makes `workdir` this config's run, or finds that it already is.

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
    found = read_config(workdir) if (workdir / CONFIG).exists() else None
    if found is None:
      logs.write_json(workdir / CONFIG, config.to_dict())
  except OSError as error:
    raise UserError(f"--workdir={workdir}: cannot be written ({error}); choose another") from error
  if found is not None and (changed := config_lib.differences(config, found)):
    raise UserError(
      f"--workdir={workdir} holds a run with another config (differing: {', '.join(changed[:6])}"
      f"{', ...' if len(changed) > 6 else ''}); choose another folder or delete this one"
    )


def read_config(workdir):
  """The config a run was started with, as a plain dict.

  Raises:
    UserError: `workdir` holds no run, or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / CONFIG
  if not path.exists():
    raise UserError(f"--workdir={workdir}: holds no run ({CONFIG} is missing); train one first")
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is damaged ({error}); delete the folder to start anew") from error
