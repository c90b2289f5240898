"""Stores the scores of finished runs, which a training with the same config then shows at its end.

Command: python -m experiments.stored_scores --method RUN ... --baseline RUN ...
Writes:  dgia_jax/reporting/stored_scores.json

The runs of `--method` have the config of the built-in dataset and differ in their seeds; those of
`--baseline` train the contrastive loss alone.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from configs import synth_pedes
from dgia_jax import cli, files, user_files
from dgia_jax import config as config_lib
from dgia_jax.errors import UserError
from dgia_jax.models import pretrained
from dgia_jax.reporting import stored_scores
from dgia_jax.training import workdir as workdir_lib

BASELINE = {f"loss.weights.{name}": 0.0 for name in ("local", "global", "consistency")}


def setting(
  title: str, folders: Iterable[pathlib.Path], changes: Mapping[str, Any], flag: str
) -> dict[str, Any]:
  """The stored form of the runs of one setting.

  Args:
    title: of the setting.
    folders: the runs.
    changes: fields that the setting changes in the config of the built-in dataset.
    flag: that named the folders, for error messages.

  Raises:
    UserError: a folder holds no finished run of this setting, or a seed occurs twice.
  """
  recipe = config_lib.changed_fields(synth_pedes.get_config()) | changes
  seeds, scores = [], {metric: [] for metric in stored_scores.METRICS}
  for folder in folders:
    config = config_lib.from_stored(workdir_lib.read_config(folder, flag))
    stored = config_lib.changed_fields(config)
    if stored != recipe:
      names = sorted(n for n in stored.keys() | recipe.keys() if stored.get(n) != recipe.get(n))
      raise UserError(f"{flag}={folder}: is no run of this setting (differing: {', '.join(names)})")
    if labels := workdir_lib.identity_labels(folder):
      raise UserError(
        f"{flag}={folder}: is no run of this setting: it uses identity labels ({labels})"
      )
    last = user_files.read_json(folder / workdir_lib.RESULTS, flag)["last"]
    if last["epoch"] != config.num_epochs:
      raise UserError(f"{flag}={folder}: its {workdir_lib.RESULTS} is not of the last epoch")
    seeds.append(config.seed)
    for metric, values in scores.items():
      values.append(round(last["t2i"][metric], 4))
  if len(seeds) < 2 or len(set(seeds)) < len(seeds):
    raise UserError(f"{flag}: give runs of several seeds, one each; these have {seeds}")
  flags = "".join(f" --config.{name}={value:g}" for name, value in changes.items())
  command = f"python -m dgia_jax.main --config synth_pedes{flags}"
  return {"title": title, "command": command, "seeds": seeds, "scores": scores}


def _weights_checksum(source: str) -> str:
  """The SHA-256 of the weights of a shipped model, or "" for any other start."""
  if not pretrained.is_shipped(source):
    return ""
  return files.sha256(pretrained.local_copy(source, "pretrained") / "model.safetensors")


def _run(argv: Sequence[str] | None) -> None:
  parser = cli.ArgumentParser(
    prog="python -m experiments.stored_scores",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for flag in ("--method", "--baseline"):
    parser.add_argument(flag, nargs="+", type=pathlib.Path, required=True, metavar="RUN")
  arguments = parser.parse_args(argv)
  config = synth_pedes.get_config()
  content = {
    "recipe": config_lib.changed_fields(config),
    "pretrained_sha256": _weights_checksum(config.pretrained),
    "settings": [
      setting("contrastive loss alone", arguments.baseline, BASELINE, "--baseline"),
      setting("whole method", arguments.method, {}, "--method"),
    ],
  }
  files.write_json(stored_scores.FILE, content)
  print(f"wrote {stored_scores.FILE}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns its exit code."""
  return cli.run(_run, argv)


if __name__ == "__main__":
  sys.exit(main())
