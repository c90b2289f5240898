"""Reproduces the paper's tables and figures, each with one command:

  python -m experiments.run modules --dataset synth_pedes --seeds 0,1,2 --jobs 2
  python -m experiments.run all --dataset cuhk_pedes --source cuhk_pedes=FOLDER --dry_run

Trains the missing runs, takes the measurements that a table needs beyond the scores, and writes
Markdown, CSV, PNG and PDF files to WORKDIR/report/DATASET; options that change the results are
added to the name of that folder. Tables share finished runs, and interrupted runs resume.
`--dry_run` prints the training commands of the missing runs instead, one per line, for a job array
or `tr '\\n' '\\0' | xargs -0 -P N -I CMD sh -c CMD`.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import logging
import pathlib
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from dgia_jax import cli, full_disk, user_files
from dgia_jax.errors import UserError
from experiments.paper import collect, launch, report, runs, tables, targets

ALL = "all"
Value = TypeVar("Value")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""
  arguments = sys.argv[1:] if argv is None else list(argv)
  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs details of its file layout
  return cli.run(_run, arguments, interrupted="stopped; the same command continues")


def _run(arguments: Sequence[str]) -> None:
  """Plans, trains, measures and reports.

  Raises:
    UserError: a flag is wrong, `--workdir` cannot be written, or a run or measurement is not
      finished.
  """
  flags = _parse(arguments)
  options, named = _options(flags)
  plans = _plan(flags.experiment, options)
  for plan in plans:
    if plan.conflicts:  # among the commands of a dry run, this would be taken for one
      note = f"{plan.experiment.name}: {plan.not_applicable}"
      print(note, file=sys.stderr if flags.dry_run else sys.stdout, flush=True)
  plans = [plan for plan in plans if plan.runs]
  selected = _select_runs(plans, flags.only, flags.shard)
  if flags.dry_run:
    _print_commands(selected)
    return
  _check_packages(plans, not flags.report_only)
  problems = []
  with _explaining_write_errors(flags.workdir):
    if not flags.report_only:
      reasons = launch.train_with_starts(selected, flags.jobs, _print_line)
      problems += [f"{title}: {reason}" for title, reason in reasons.items()]
    from experiments.paper import render  # imports matplotlib and the model: not for a dry run

    for plan in plans:
      data = collect.collect(plan, options, named, not flags.report_only, _print_line)
      path = report.write(render.content_of(data), data, report.command_of(arguments))
      _print_line(f"{plan.experiment.name}: {path}")
      problems += [f"{plan.experiment.name}: {problem}" for problem in data.problems]
  if problems:
    raise UserError(f"{len(problems)} not done: " + "; ".join(problems))


def _check_packages(plans: Sequence[collect.Plan], computes: bool) -> None:
  """Raises UserError, before hours of training, if a package for what follows is missing."""
  needed = {"matplotlib": "matplotlib"}
  if computes and any(plan.experiment.measure == "tsne" for plan in plans):
    needed["sklearn"] = "scikit-learn"
  missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
  if missing:
    raise UserError(f'the reports need {" and ".join(missing)}: pip install -e ".[experiments]"')


@contextlib.contextmanager
def _explaining_write_errors(workdir: pathlib.Path) -> Iterator[None]:
  """Turns errors of files in a folder, and of a full disk, into a `UserError` about --workdir."""
  try:
    yield
  except OSError as error:
    folder, place = workdir.absolute(), pathlib.Path(str(error.filename)).absolute()
    is_there = place.is_relative_to(folder) or folder.is_relative_to(place)
    if not (is_there and error.filename or full_disk.is_cause(error)):
      raise
    raise UserError(
      f"--workdir {workdir}: cannot be written ({error}); make room, or choose another"
    ) from error


def _print_commands(selected: Sequence[runs.ExperimentRun]) -> None:
  """Prints the training commands of the missing runs, those that others start from first."""
  starts, missing = launch.missing_starts(selected), launch.missing(selected)
  for title, listed in (("first these", starts), ("then these", missing)):
    if starts:  # a shell ignores these lines
      print(f"# {title}:")
    for run in listed:
      print(launch.command_line(run))


def _print_line(text: str) -> None:
  print(text, flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = cli.ArgumentParser(
    prog="python -m experiments.run",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("experiment", help=f"{', '.join(tables.EXPERIMENTS)}, or {ALL}")
  parser.add_argument("--dataset", default="synth_pedes", help=", ".join(tables.DATASETS))
  parser.add_argument("--seeds", default="0", help="comma-separated")
  parser.add_argument("--workdir", default="runs/paper", help="default: runs/paper")
  parser.add_argument("--variant", default="", help="of the config file, such as paper or tiny")
  parser.add_argument(
    "--schedule", help="a schedule from experiments/paper/tables.py, or `config` for the config's"
  )
  parser.add_argument(
    "--protocol",
    help=f"which epoch's scores are reported: {', '.join(tables.PROTOCOLS)}; "
    "default: the one that the config chooses (eval.select_on)",
  )
  parser.add_argument(
    "--split", default="test", choices=("test", "val"), help="val is for choosing settings"
  )
  parser.add_argument(
    "--set", action="append", default=[], metavar="FIELD=VALUE", help="config field of every run"
  )
  parser.add_argument(
    "--source",
    action="append",
    default=[],
    metavar="DATASET[:VARIANT]=FOLDER",
    help="folder of a dataset's files, of the runs' own or of another to test on; "
    f"{tables.EMBEDDED}[:VARIANT] needs none",
  )
  parser.add_argument(
    "--jobs", type=int, default=1, help="number of runs trained in parallel, one per GPU"
  )
  parser.add_argument("--only", default="", help="train only these settings, comma-separated")
  parser.add_argument("--shard", default="", help="i/n: train every n-th run, from the i-th on")
  parser.add_argument(
    "--dry_run", action="store_true", help="print the training commands of the missing runs"
  )
  parser.add_argument(
    "--report_only", action="store_true", help="report what exists; do not train or measure"
  )
  flags = parser.parse_args(arguments)
  flags.workdir = user_files.local_path(flags.workdir, "--workdir")
  return flags


def _options(flags: argparse.Namespace) -> tuple[runs.Options, list[targets.Target]]:
  """The options of all runs, and the datasets named by `--source`.

  Raises:
    UserError: the value of a flag is invalid.
  """
  dataset = _look_up(tables.DATASETS, flags.dataset, "--dataset")
  if flags.protocol:
    _look_up(tables.PROTOCOLS, flags.protocol, "--protocol")
  if flags.split == "val" and flags.protocol not in (None, "last"):
    raise UserError("--split val: val scores are kept for the last epoch; use --protocol last")
  try:
    seeds = tuple(dict.fromkeys(int(seed) for seed in flags.seeds.split(",")))
  except ValueError as error:
    raise UserError(f"--seeds {flags.seeds}: give numbers, such as 0,1,2") from error
  if flags.jobs < 1:
    raise UserError(f"--jobs {flags.jobs}: give a positive number")
  options = runs.Options(
    dataset=dataset,
    workdir=flags.workdir,
    seeds=seeds,
    variant=flags.variant,
    schedule=_schedule(dataset, flags),
    overrides=runs.parse_overrides(flags.set),
    split=flags.split,
  )
  named = [_parse_source(text) for text in flags.source]
  for target in named:
    if target.source and targets.is_own(target, options):
      overrides = {**options.overrides, "dataset.source": target.source}
      options = dataclasses.replace(options, overrides=overrides)
  protocol = flags.protocol or ("last" if flags.split == "val" else runs.default_protocol(options))
  return dataclasses.replace(options, protocol=protocol), named


def _parse_source(text: str) -> targets.Target:
  """The dataset that a `--source` names."""
  label, _, folder = text.partition("=")
  name, _, variant = label.partition(":")
  _look_up(tables.DATASETS, name, "--source")
  if not folder and name != tables.EMBEDDED:
    raise UserError(f"--source {text}: give DATASET=FOLDER, or DATASET:VARIANT=FOLDER")
  importlib.import_module(f"configs.{name}").get_config(variant)  # knows its variants
  return targets.Target(name, variant, folder)


def _schedule(dataset: tables.Dataset, flags: argparse.Namespace) -> str:
  """Name of a declared schedule; "" for the config's own, the default with a variant."""
  if flags.schedule is None:
    return "" if flags.variant else dataset.schedule
  if flags.schedule == "config":
    return ""
  if flags.schedule not in dataset.schedules:
    raise UserError(
      f"--schedule {flags.schedule}: {dataset.name} has {', '.join((*dataset.schedules, 'config'))}"
    )
  return flags.schedule


def _plan(name: str, options: runs.Options) -> list[collect.Plan]:
  """The runs of the experiment with this name, or of all.

  Raises:
    UserError: the experiment is unknown, or has no setting that the options allow.
  """
  if name == ALL:
    experiments = list(tables.EXPERIMENTS.values())
  else:
    experiments = [_look_up(tables.EXPERIMENTS, name, "experiment", ALL)]
  plans = [collect.plan(experiment, options) for experiment in experiments]
  for plan in plans:
    if not plan.runs and name != ALL:
      raise UserError(f"{plan.experiment.name}: {plan.not_applicable}")
  return plans


def _look_up(table: Mapping[str, Value], name: str, flag: str, *more: str) -> Value:
  """The value under a name.

  Raises:
    UserError: the name is unknown; the message lists the known names and `more`.
  """
  if name not in table:
    raise UserError(f"{flag} {name}: unknown; choose one of {', '.join((*table, *more))}")
  return table[name]


def _select_runs(plans: Sequence[collect.Plan], only: str, shard: str) -> list[runs.ExperimentRun]:
  """The distinct runs with a label in `only` (all labels if empty), reduced to a shard.

  Raises:
    UserError: no setting has such a label, or the shard is not i/n.
  """
  labels = set(filter(None, only.split(",")))
  known = dict.fromkeys(label for plan in plans for label in plan.runs)
  if unknown := labels - known.keys():
    raise UserError(
      f"--only {', '.join(sorted(unknown))}: unknown setting; choose among {', '.join(known)}"
    )
  distinct = _distinct_runs(plans, labels or known.keys())
  # Sorted by seed, so that an interrupted session leaves complete tables of fewer seeds.
  ordered = sorted(distinct, key=lambda run: run.seed)
  if not shard:
    return ordered
  index, slash, count = shard.partition("/")
  if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
    raise UserError(f"--shard {shard}: give i/n with i from 1 to n, such as 1/4")
  return ordered[int(index) - 1 :: int(count)]


def _distinct_runs(
  plans: Iterable[collect.Plan], labels: Container[str]
) -> list[runs.ExperimentRun]:
  """The runs with these labels, one for each folder."""
  by_folder = {
    run.folder: run
    for plan in plans
    for label, runs_of_label in plan.runs.items()
    if label in labels
    for run in runs_of_label
  }
  return list(by_folder.values())


if __name__ == "__main__":
  sys.exit(main())
