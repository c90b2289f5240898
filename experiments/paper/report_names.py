"""Names what a report is about: in the name of its folder and in its title.

Options that change a run's results, or which of them are reported, have reports of their own:

  --variant scratch --schedule warm               synth_pedes-scratch-warm
  --set optimizer.weight_decay=0.05               synth_pedes-optimizer.weight_decay=0.05
  --protocol last                                 synth_pedes-last
  --split val                                     synth_pedes-val
  --dataset custom                                custom-3f1a9c27, a digest of the annotations
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from experiments.paper import dataset_content, runs, tables

_LONGEST = 60  # characters of overrides in the name of a folder
_READABLE = re.compile(r"[A-Za-z0-9._=+,-]*")


def folder_name(options: runs.Options) -> str:
  """Name of the folder of all reports with these options; the dataset's where they are defaults."""
  overrides = "-".join(_texts(_overrides(options)))
  if len(overrides) > _LONGEST or not _READABLE.fullmatch(overrides):
    overrides = hashlib.sha256(overrides.encode()).hexdigest()[:8]
  is_default = options.split == "val" or options.protocol == runs.default_protocol(options)
  parts = (
    options.dataset.name,
    _content(options),
    options.variant,
    _schedule(options),
    overrides,
    "" if is_default else options.protocol,
    "" if options.split == "test" else options.split,
  )
  return "-".join(filter(None, parts))


def title(options: runs.Options) -> str:
  """The dataset with all options that change a run's results."""
  dataset, content, schedule = options.dataset.title, _content(options), _schedule(options)
  parts = (
    f"{dataset}:{options.variant}" if options.variant else dataset,
    content and f"annotations {content}",
    schedule and f"schedule {schedule}",
    *_texts(_overrides(options)),
  )
  return ", ".join(filter(None, parts))


def _schedule(options: runs.Options) -> str:
  """The schedule, if it is not the default."""
  default = "" if options.variant else options.dataset.schedule
  return "" if options.schedule == default else options.schedule or "config"


def _content(options: runs.Options) -> str:
  """Digest of the annotations of a user's own dataset."""
  settings = _config(options).dataset
  return dataset_content.short(dataset_content.of_own_data(settings))


def _overrides(options: runs.Options) -> Mapping[str, Any]:
  """{field: value} that `--set` changes, except where and how a run is trained."""
  config = _config(options)
  changed = config_lib.differences(config, _config(dataclasses.replace(options, overrides={})))
  return {name: config_lib.get(config, name) for name in changed}


def _config(options: runs.Options) -> ConfigDict:
  """The config of the whole method."""
  return runs.resolve(options, runs.fields_of(options, tables.WHOLE, options.seeds[0], None))


def _texts(fields: Mapping[str, Any]) -> list[str]:
  """["field=value"]; a tuple without brackets and spaces."""
  as_text = lambda value: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
  return [f"{name}={as_text(value)}" for name, value in fields.items()]
