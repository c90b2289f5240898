"""Reproduces the paper's tables and figures, each by one command:

  python -m experiments.run modules --dataset synth_pedes --seeds 0,1,2 --jobs 2
  python -m experiments.run all --dataset cuhk_pedes --source cuhk_pedes=FOLDER --dry_run

Trains what is missing (finished runs are reused, whichever table they were made for; killed ones
resume), measures finished runs where a table needs more than their scores, and writes Markdown, CSV
and PNG to WORKDIR/report/DATASET. `--dry_run` prints the commands of the missing runs instead, one
a line, for a job array or `xargs -P N -I CMD sh -c CMD`.
"""

import argparse
import logging
import pathlib
import sys

from dgia_jax.errors import UserError
from experiments.paper import collect, launch, report, runs, tables

ALL = "all"


def main(argv=None):
  """Runs a command line and returns its exit code."""
  arguments = sys.argv[1:] if argv is None else list(argv)
  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs its file layout
  try:
    return _run(_parse(arguments), report.command_of(arguments))
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped: run the same command to resume", file=sys.stderr)
    return 130


def _run(flags, command):
  """Plan, train, measure, report; returns the exit code."""
  options, sources = _options(flags)
  experiments = _chosen(flags.experiment, options.dataset.name)
  plans = {experiment.name: collect.plan(experiment, options) for experiment in experiments}
  wanted = _wanted(plans, flags.only, flags.shard)
  problems = {}
  if flags.dry_run:
    first = launch.starts(launch.missing(wanted))
    for title, listed in (("first these", first), ("then these", launch.missing(wanted))):
      if first:  # a shell does nothing for such a line
        print(f"# {title}:")
      for run in listed:
        print(launch.command_line(run))
    return 0
  if not flags.report_only:
    problems = launch.train_with_starts(wanted, flags.jobs, _say)
  from experiments.paper import (
    render,  # brings matplotlib and the model: not for a list of commands
  )

  for experiment in experiments:
    found = collect.collect(
      experiment, options, plans[experiment.name], sources, not flags.report_only, _say
    )
    path = report.write(render.section_of(found), found, command)
    _say(f"{experiment.name}: {path}")
    problems |= {f"{experiment.name}: {text}": "" for text in found.problems}
  if problems:
    lines = [f"{what}: {why}" if why else what for what, why in problems.items()]
    raise UserError(f"{len(lines)} not done: " + "; ".join(lines))
  return 0


def _say(text):
  print(text, flush=True)


def _parse(arguments):
  parser = argparse.ArgumentParser(
    prog="python -m experiments.run",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("experiment", help=f"{', '.join(tables.EXPERIMENTS)}, or {ALL}")
  parser.add_argument("--dataset", default="synth_pedes", help=", ".join(tables.DATASETS))
  parser.add_argument("--seeds", default="0", help="comma-separated")
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/paper"))
  parser.add_argument("--variant", default="", help="of the config file, such as paper or tiny")
  parser.add_argument(
    "--schedule", help="a declared schedule, or `config` for the config file's own"
  )
  parser.add_argument(
    "--protocol", help=f"epoch whose test scores count: {', '.join(tables.PROTOCOLS)}"
  )
  parser.add_argument(
    "--split", default="test", choices=("test", "val"), help="val: to choose settings by"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="FIELD=VALUE",
    help="set a config field of all runs",
  )
  parser.add_argument(
    "--source",
    action="append",
    default=[],
    metavar="DATASET=FOLDER",
    help=f"a dataset's files; {tables.EMBEDDED} has none",
  )
  parser.add_argument("--jobs", type=int, default=1, help="runs in parallel")
  parser.add_argument("--only", default="", help="train these settings only, comma-separated")
  parser.add_argument(
    "--shard", default="", help="i/n: train every n-th run, starting with the i-th"
  )
  parser.add_argument("--dry_run", action="store_true", help="print the commands of missing runs")
  parser.add_argument("--report_only", action="store_true", help="neither train nor measure")
  return parser.parse_args(arguments)


def _options(flags):
  """runs.Options and {dataset: folder} from the flags.

  Raises:
    UserError: a flag's value makes no sense.
  """
  dataset = _named(tables.DATASETS, flags.dataset, "--dataset")
  protocol = flags.protocol or ("last" if flags.split == "val" else dataset.protocol)
  _named(tables.PROTOCOLS, protocol, "--protocol")
  if flags.split == "val" and protocol != "last":
    raise UserError("--split val: scores on val are kept of the last epoch; use --protocol last")
  try:
    seeds = tuple(dict.fromkeys(int(seed) for seed in flags.seeds.split(",")))
  except ValueError as error:
    raise UserError(f"--seeds {flags.seeds}: give numbers, such as 0,1,2") from error
  if flags.jobs < 1:
    raise UserError(f"--jobs {flags.jobs}: give a positive number")
  sources = {}
  for text in flags.source:
    name, _, folder = text.partition("=")
    _named(tables.DATASETS, name, "--source")
    if not folder and name != tables.EMBEDDED:
      raise UserError(f"--source {text}: give DATASET=FOLDER")
    sources[name] = folder
  overrides = runs.parse_overrides(flags.set)
  if sources.get(dataset.name):
    overrides |= {"dataset.source": sources[dataset.name]}
  options = runs.Options(
    dataset=dataset,
    workdir=flags.workdir,
    seeds=seeds,
    variant=flags.variant,
    schedule=_schedule(dataset, flags),
    overrides=overrides,
    protocol=protocol,
    split=flags.split,
  )
  return options, sources


def _schedule(dataset, flags):
  """Name of a declared schedule, "" for the config's own, which a variant brings with it."""
  if flags.schedule is None:
    return "" if flags.variant else dataset.schedule
  if flags.schedule == "config":
    return ""
  if flags.schedule not in dataset.schedules:
    raise UserError(
      f"--schedule {flags.schedule}: {dataset.name} has {', '.join((*dataset.schedules, 'config'))}"
    )
  return flags.schedule


def _chosen(name, dataset):
  """The experiments of a name that exist for the dataset."""
  if name == ALL:
    found = tables.EXPERIMENTS.values()
    return [e for e in found if not e.datasets or dataset in e.datasets]
  experiment = _named(tables.EXPERIMENTS, name, "experiment", ALL)
  if experiment.datasets and dataset not in experiment.datasets:
    raise UserError(f"{name} exists for --dataset {' or '.join(experiment.datasets)} only")
  return [experiment]


def _named(table, name, what, *more):
  if name not in table:
    raise UserError(f"{what} {name}: unknown; choose one of {', '.join((*table, *more))}")
  return table[name]


def _wanted(plans, only, shard):
  """The runs to train: those of the labels in `only`, then every n-th of the different ones.

  Raises:
    UserError: no setting has such a label, or the shard is not i/n.
  """
  labels = set(filter(None, only.split(",")))
  unknown = labels - {label for plan in plans.values() for label in plan}
  if unknown:
    known = ", ".join(dict.fromkeys(label for plan in plans.values() for label in plan))
    raise UserError(f"--only {', '.join(sorted(unknown))}: unknown setting; choose among {known}")
  found = {}
  for plan in plans.values():
    for label, made in plan.items():
      if not labels or label in labels:
        found |= {run.folder: run for run in made}
  # By seed first, so that a session cut short leaves whole tables of fewer seeds.
  ordered = sorted(found.values(), key=lambda run: run.seed)
  if not shard:
    return ordered
  index, slash, count = shard.partition("/")
  if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
    raise UserError(f"--shard {shard}: give i/n with i from 1 to n, such as 1/4")
  return ordered[int(index) - 1 :: int(count)]


if __name__ == "__main__":
  sys.exit(main())
