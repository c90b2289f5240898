"""Puts a pretraining run into the package as the model `mini`, with its zero-shot scores.

Commands: python -m dgia_jax.main --config mini --workdir runs/mini
          python -m experiments.ship_mini --run runs/mini
Writes:   dgia_jax/models/shipped/mini

The scores are those on the built-in dataset, before any training on it: with the words that the
model has read (`synth_pedes:scratch`), and with the rarer ones that it has not (`synth_pedes`).
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import mini, synth_pedes
from dgia_jax import cli, convert, files, user_files
from dgia_jax import config as config_lib
from dgia_jax.config_ranges import get
from dgia_jax.models import pretrained
from dgia_jax.models.pretrained import shipped
from dgia_jax.reporting.console import Console
from dgia_jax.reporting.score_labels import DIRECTIONS, SCORES, percents
from dgia_jax.training import evaluate, run_weights
from dgia_jax.training import workdir as workdir_lib

NAME = "mini"
NOTES = """\
## How it was made

```
{command}
python -m experiments.ship_mini --run runs/mini
```

It was pretrained on {device} with the contrastive loss and a learned temperature, which ended at
{temperature:.4f}. Its synthetic people are not those of the built-in dataset, nor are the cameras
and annotators. The weights are stored in float16.

## Zero-shot scores

On the test split of the built-in dataset before any training on it, in percent.
{tables}"""
TABLE = """
`{config}` ({queries:,} captions, {gallery:,} images; `{options}`):

{table}
"""
VARIANTS = ("scratch", "")  # of configs/synth_pedes.py, on whose test splits the model is scored


def ship(run: pathlib.Path) -> None:
  """Converts a run, scores the result by its name, and writes the card.

  Raises:
    UserError: `run` is no evaluated run of a model.
  """
  folder = shipped.FOLDER / NAME
  convert.convert(run, folder, dtype="float16")
  made = config_lib.from_stored(workdir_lib.read_config(run, "--run"))
  results = user_files.read_json(run / workdir_lib.RESULTS, "--run")
  temperature = run_weights.load(run, setting="--run").temperature
  tables = [score(variant, folder, made.model.name) for variant in VARIANTS]
  text = NOTES.format(
    command=command(made),
    device=results["device"],
    temperature=temperature,
    tables="".join(tables),
  )
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary, "notes.md")
    files.write_text(path, text)
    convert.convert(run, folder, dtype="float16", notes=path)


def score(variant: str, folder: pathlib.Path, size: str) -> str:
  """Scores the shipped model on the test split of a variant of the built-in dataset.

  Args:
    variant: of configs/synth_pedes.py.
    folder: of the model.
    size: `config.model.name` of the model.

  Returns:
    The scores as a Markdown table under a line that describes the split.
  """
  config = synth_pedes.get_config(variant)
  config.pretrained, config.model.name = NAME, size
  config.tokenizer.context_length = pretrained.read_config(folder).context_length
  config.eval.contact_sheet = False
  with tempfile.TemporaryDirectory() as workdir:
    scores = evaluate.score_pretrained(config, workdir, Console())
  heads = ["", *SCORES.values(), "R@1 by chance"]
  lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
  lines += [
    [title, *percents(scores["last"][direction]), f"{scores['chance_R1'][direction]:.2f}"]
    for direction, title in DIRECTIONS.items()
  ]
  return TABLE.format(
    config="synth_pedes" + (f":{variant}" if variant else ""),
    queries=scores["queries"],
    gallery=scores["gallery"],
    options=", ".join(f"{name}={value}" for name, value in sorted(config.dataset.options.items())),
    table="\n".join(f"| {' | '.join(line)} |" for line in lines),
  )


def command(made: ConfigDict) -> str:
  """The command of the pretraining, with the settings that differ from configs/mini.py."""
  differing = config_lib.differences(made, mini.get_config())
  flags = "".join(f" --config.{name}={get(made, name)}" for name in differing)
  return f"python -m dgia_jax.main --config mini --workdir runs/mini{flags}"


def _run(argv: Sequence[str] | None) -> None:
  parser = cli.ArgumentParser(
    prog="python -m experiments.ship_mini",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--run", required=True, type=pathlib.Path, help="folder of the pretraining")
  ship(parser.parse_args(argv).run)
  print(f"wrote {shipped.FOLDER / NAME}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns its exit code."""
  return cli.run(_run, argv)


if __name__ == "__main__":
  sys.exit(main())
