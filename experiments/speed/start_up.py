"""Seconds from the command to the first training step, phase by phase.

  python -m experiments.speed.start_up --dataset demo
  python -m experiments.speed.start_up --dataset cuhk_sized

`demo` is the config synth_pedes. `cuhk_sized` has as many pairs as the training split of
CUHK-PEDES, 68,108 of 34,054 images, made up and small, for the tiny model. Datasets are built
before. Two processes are timed: the first has an empty compilation cache, the second finds it full.
Prints seconds by the clock and by the processor, all its cores and threads together.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

NUM_IMAGES = {"train": 34_054, "val": 200, "test": 200}
CAPTIONS_PER_IMAGE = 2
PHASES = (
  "imports", "dataset", "vocabulary", "tokens", "model and state", "first batch", "compile",
  "first step",
)  # fmt: skip
_COLOURS = "black white grey red blue green brown yellow pink purple orange beige".split()
_CLOTHES = "jacket coat shirt sweater dress hoodie vest blouse suit T-shirt".split()
_BELOW = "jeans trousers shorts skirt leggings sandals sneakers boots shoes socks".split()
_THINGS = "backpack handbag umbrella phone bottle suitcase scarf hat cap bicycle".split()


def caption(rng: np.random.Generator) -> str:
  """A made-up description of the usual length."""
  pick = lambda words: words[rng.integers(len(words))]
  person = pick(["man", "woman", "boy", "girl", "person"])
  return (
    f"A {person} is walking and wears a {pick(_COLOURS)} {pick(_CLOTHES)} over a {pick(_COLOURS)}"
    f" {pick(_CLOTHES)}, {pick(_COLOURS)} {pick(_BELOW)} and {pick(_COLOURS)} {pick(_BELOW)}. The"
    f" {person} carries a {pick(_COLOURS)} {pick(_THINGS)} and a {pick(_THINGS)}."
  )


def write_files(folder: pathlib.Path, num_images: dict[str, int] | None = None) -> None:
  """Writes annotations and small image files of a dataset, two images of each person."""
  import PIL.Image

  rng, rows = np.random.default_rng(0), []
  for split, count in (num_images or NUM_IMAGES).items():
    for image in range(count):
      name = f"{split}/{image // 1000}/{image:05d}.jpg"
      path = folder / "images" / name
      path.parent.mkdir(parents=True, exist_ok=True)
      content = io.BytesIO()
      pixels = rng.integers(0, 255, (8, 4, 3), np.uint8)
      PIL.Image.fromarray(pixels).resize((32, 64)).save(content, "JPEG")
      path.write_bytes(content.getvalue())
      captions = [caption(rng) for _ in range(CAPTIONS_PER_IMAGE)]
      person = f"{split}{image // 2}"
      rows.append({"split": split, "file_path": name, "id": person, "captions": captions})
  (folder / "annotations.json").write_text(json.dumps(rows))


def settings(dataset: str, folder: pathlib.Path) -> Any:
  """The config of a dataset, whose files are below a folder."""
  import importlib

  if dataset == "demo":
    config = importlib.import_module("configs.synth_pedes").get_config()
  else:
    config = importlib.import_module("configs.custom").get_config("tiny")
    config.dataset.annotations = str(folder / "annotations.json")
    config.dataset.images = str(folder / "images")
    config.dataset.data_dir = str(folder / "built")
  return config


def start(dataset: str, folder: pathlib.Path, started: float) -> dict[str, tuple[float, float]]:
  """Starts a training run up to its first step, in the order of `training.train`.

  Args:
    dataset: a choice of `--dataset`.
    folder: with the files of the dataset.
    started: time of the command, in seconds since the epoch.

  Returns:
    For each phase, seconds by the clock and by the processor.
  """
  phases, before = {}, (started, 0.0)

  def finish(phase: str) -> None:
    nonlocal before
    now = (time.time(), time.process_time())
    phases[phase] = (now[0] - before[0], now[1] - before[1])
    before = now

  import jax

  from dgia_jax import config as config_lib
  from dgia_jax import sharding
  from dgia_jax.data.prefetch import Prefetcher
  from dgia_jax.method import compilation
  from dgia_jax.training import compilation_cache, inputs, packing_plan
  from dgia_jax.training import setup as setup_lib
  from dgia_jax.training import train as train_lib

  finish("imports")
  config = settings(dataset, folder)
  config_lib.check(config)
  compilation_cache.enable()
  splits = inputs.load_splits(config)
  finish("dataset")
  with tempfile.TemporaryDirectory() as workdir:
    vocabulary = inputs.load_tokenizer(config, workdir, splits["train"].captions)
  finish("vocabulary")
  tokens_NxL = vocabulary.encode(splits["train"].captions)
  finish("tokens")
  mesh = sharding.create_mesh(**config.mesh)
  setup = setup_lib.assemble(config, mesh, splits, vocabulary)
  state = jax.block_until_ready(setup_lib.initial_state(setup, lambda text: None))
  finish("model and state")
  batches = Prefetcher(train_lib.global_batches(setup, tokens_NxL, 0), train_lib.PREFETCH)
  batch = next(batches)
  finish("first batch")
  packing = packing_plan.choose_packing(setup, tokens_NxL)
  step = compilation.compile_step(setup_lib.create_step(setup, packing), mesh, state, batch)
  finish("compile")
  jax.block_until_ready(step(state, batch))
  finish("first step")
  batches.close()
  return phases


def measure(dataset: str, folder: pathlib.Path) -> dict[str, dict[str, tuple[float, float]]]:
  """The phases of a start without compiled programs, and of one that finds them."""
  results = {}
  for name in ("cold", "warm"):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    command = [sys.executable, "-m", "experiments.speed.start_up", "--dataset", dataset]
    command += ["--started_in", str(folder), "--started", str(time.time())]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    results[name] = json.loads(output.stdout.splitlines()[-1])
  return results


def table(results: dict[str, dict[str, tuple[float, float]]]) -> str:
  """The results as a Markdown table."""
  lines = ["| phase | cold, clock | cold, processor | warm, clock | warm, processor |", "|---" * 5]
  lines[1] += "|"
  columns = [
    [results[name][phase][kind] for phase in PHASES] for name in ("cold", "warm") for kind in (0, 1)
  ]
  rows = [*zip(PHASES, *columns, strict=True), ("total", *map(sum, columns))]
  return "\n".join([*lines, *(_line(name, numbers) for name, *numbers in rows)])


def _line(name: str, numbers: list[float]) -> str:
  return f"| {name} | " + " | ".join(f"{number:.1f}" for number in numbers) + " |"


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--dataset", choices=("demo", "cuhk_sized"), default="demo")
  parser.add_argument("--started_in", help=argparse.SUPPRESS)  # of the processes that are timed
  parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.started_in:
    print(json.dumps(start(options.dataset, pathlib.Path(options.started_in), options.started)))
    return
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    if options.dataset == "cuhk_sized":
      write_files(folder)
    from dgia_jax.training import inputs

    inputs.load_splits(settings(options.dataset, folder))  # builds the dataset
    print(table(measure(options.dataset, folder)))


if __name__ == "__main__":
  main()
