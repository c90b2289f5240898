"""What is knowing identities worth on synth_pedes? Baselines, the method and two oracles.

  python -m experiments.reference_runs --workdir runs/reference --seeds 0,1,2 --jobs 2

Trains every variant with every seed (finished runs are reused, killed ones resumed), prints mean
and spread of the last epoch's scores, and writes them as Markdown and JSON. Four to seven minutes a
run on one CPU core. `--split val` is what the dataset's settings were chosen by.
"""

import argparse
import ast
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

OFF = {f"loss.weights.{name}": 0.0 for name in ("local", "global", "consistency")}

# True relations can be used as soon as features mean something; mined ones cannot.
EARLY = {"local_association.start_epoch": 6, "global_association.start_epoch": 6}

# name -> (what it is, {config field: value}, which oracle)
VARIANTS = {
  "baseline": ("contrastive loss alone", OFF, None),
  "augmented": (
    "baseline + the distorted view, matched to itself alone",
    OFF | EARLY | {"loss.weights.consistency": 1.0, "local_association.modality": "none"},
    None,
  ),
  "method": ("all four losses, relations mined without identities", {}, None),
  "method_early": ("all four losses, mined from epoch 6 on like the oracle's", EARLY, None),
  "oracle_relations": ("ORACLE: all four losses, true relations from epoch 6", EARLY, "relations"),
  "oracle_captions": (
    "ORACLE: baseline, each image with a caption of its person",
    OFF,
    "captions",
  ),
}


def configure(variant, seed, overrides=()):
  """The config of a run: the default, the variant's fields, and `field=value` overrides."""
  from configs import synth_pedes

  config = synth_pedes.get_config()
  config.seed = seed
  config.eval.contact_sheet = False
  config.checkpoint.keep = 1
  fields = dict(VARIANTS[variant][1])
  for override in overrides:
    name, value = override.split("=", 1)
    try:
      fields[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      fields[name] = value
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return config


def train_one(variant, seed, workdir, overrides):
  """Trains one run in this process."""
  from dgia_jax import build, train
  from dgia_jax.console import Console
  from experiments import oracle

  config, kind = configure(variant, seed, overrides), VARIANTS[variant][2]
  splits = build.load_splits(config)
  plugged = {}
  if kind == "relations":
    plugged = oracle.true_relations(splits["train"], config.global_association.k, seed)
  elif kind == "captions":
    words = build.load_tokenizer(config, workdir, splits["train"].captions)
    plugged = oracle.true_captions(splits["train"], words.encode(splits["train"].captions), seed)
  train.train(config, workdir, Console(), splits, **plugged)


def _launch(job, core):
  """Trains one run in a process of its own, on one core; returns its results."""
  variant, seed, workdir, overrides = job
  workdir.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "-m", "experiments.reference_runs", "--workdir", str(workdir)]
  command += ["--one", variant, "--seeds", str(seed), "--set", *overrides]
  pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
  with open(workdir / "log.txt", "w", encoding="utf-8") as log:
    subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, preexec_fn=pin)


def run_all(variants, seeds, workdir, jobs, overrides):
  """Trains what is missing, `jobs` runs at a time; returns {variant: [results of each seed]}."""
  folder = lambda variant, seed: workdir / f"{variant}-{seed}"
  missing = [
    (variant, seed, folder(variant, seed), overrides)
    for seed in seeds
    for variant in variants
    if not (folder(variant, seed) / "results.json").exists()
  ]
  cores = sorted(os.sched_getaffinity(0))
  pins = [cores[i] if jobs == len(cores) > 1 else None for i in range(jobs)]

  def work(job):
    pin = pins.pop()
    try:
      start = time.time()
      _launch(job, pin)
      print(f"{job[0]} seed {job[1]}: {time.time() - start:.0f} s", flush=True)
    finally:
      pins.append(pin)

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for done in [pool.submit(work, job) for job in missing]:
      done.result()
  read = lambda path: json.loads((path / "results.json").read_text())
  return {v: [read(folder(v, seed)) for seed in seeds] for v in variants}


def scores_of(results, split):
  """Last-epoch text-to-image scores of a run on `split`."""
  if split == results["split"]:
    return results["last"]["t2i"]
  return results["last_by_split"][split]["t2i"]


def table(found, seeds, split):
  """The results as Markdown lines: mean and, over several seeds, standard deviation."""
  lines = [
    f"Text to image on {split}, last epoch, percent; mean ± sample standard deviation over "
    f"{len(seeds)} seed(s) ({', '.join(map(str, seeds))}).",
    "",
    "| run | what it is | R@1 | R@5 | R@10 | mAP | mINP | train s |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for variant, results in found.items():
    cells = []
    for name in ("R1", "R5", "R10", "mAP", "mINP"):
      values = [scores_of(result, split)[name] for result in results]
      spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
      cells.append(f"{np.mean(values):.2f}{spread}")
    seconds = np.mean([result["wall_time_seconds"] for result in results])
    cells = " | ".join([variant, VARIANTS[variant][0], *cells, f"{seconds:.0f}"])
    lines.append(f"| {cells} |")
  return lines


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
  parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
  parser.add_argument("--only", default=",".join(VARIANTS), help="comma-separated variants")
  parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
  parser.add_argument("--split", default="test", choices=("val", "test"))
  parser.add_argument("--out", type=pathlib.Path, help="write PATH.md and PATH.json")
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="config fields")
  parser.add_argument("--one", choices=VARIANTS, help="train this variant here, in --workdir")
  options = parser.parse_args()
  seeds = [int(seed) for seed in options.seeds.split(",")]
  if options.one:
    train_one(options.one, seeds[0], options.workdir, options.set)
    return
  variants = options.only.split(",")
  found = run_all(variants, seeds, options.workdir, options.jobs, options.set)
  lines = table(found, seeds, options.split)
  print("\n".join(lines))
  if options.out:
    options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
  main()
