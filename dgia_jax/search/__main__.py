"""Searches a folder of images by description, with a trained model:

python -m dgia_jax.search index --run runs/demo --images FOLDER --out INDEX
python -m dgia_jax.search index --run runs/demo --images FOLDER --out INDEX --annotations FILE.json
python -m dgia_jax.search index --run runs/demo --images FOLDER --out INDEX --compact
python -m dgia_jax.search query --index INDEX "a woman in a red coat with a backpack"
python -m dgia_jax.search query --index INDEX --image photo.jpg --top 5 --sheet results.png
python -m dgia_jax.search query --index INDEX --image photo.jpg "with an umbrella" --together
python -m dgia_jax.search serve --index INDEX
python -m dgia_jax.search export --index INDEX --format npy --out features.npy
"""

import argparse
import sys
from collections.abc import Sequence

from dgia_jax import cli

EXPORT_FORMATS = ("npy", "parquet", "faiss")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command line; `command` of the result names a function of `commands`."""
  parser = cli.ArgumentParser(
    prog=cli.program("search"), description=__doc__.split("\n")[0].rstrip(":")
  )
  commands = parser.add_subparsers(required=True)
  moved = "where the model is now, if it was moved"

  making = commands.add_parser("index", help="embed a folder of images, or what changed in it")
  making.add_argument(
    "--run",
    required=True,
    help="folder of a run or of a CLIP or SigLIP model, its name on the hub, or mini",
  )
  making.add_argument("--images", required=True, help="folder of images, with its subfolders")
  making.add_argument("--out", required=True, help="folder of the index")
  making.add_argument(
    "--annotations",
    help="JSON with ids and captions of the images; a query that is one of them then has its"
    " correct results marked",
  )
  making.add_argument(
    "--checkpoint",
    choices=("best", "last"),
    default="best",
    help="checkpoint of the run (default: best)",
  )
  making.add_argument(
    "--weights",
    choices=("raw", "ema"),
    default="",
    help="raw weights of the run, or their average (default: those that its scores are of)",
  )
  making.add_argument(
    "--batch_size", type=int, default=64, help="images embedded at once (default: 64)"
  )
  making.add_argument(
    "--verify", action="store_true", help="hash every file, even if its size and times are the same"
  )
  making.add_argument(
    "--compact",
    action="store_true",
    help="also remove from the disk what the index still holds of images that are gone",
  )
  making.set_defaults(command="index")

  asking = commands.add_parser("query", help="find images by description, or by another image")
  asking.add_argument("text", nargs="*", help="descriptions")
  asking.add_argument("--index", required=True, help="folder of the index")
  asking.add_argument("--file", help="text file with one description per line")
  asking.add_argument("--image", action="append", default=[], help="find images like this one")
  asking.add_argument(
    "--less_like", action="append", default=[], metavar="IMAGE", help="prefer images unlike this"
  )
  asking.add_argument(
    "--together", action="store_true", help="one query of all descriptions and images"
  )
  asking.add_argument("--only", default="", metavar="GLOB", help='paths to search: "*/entrance/*"')
  asking.add_argument("--fold", action="store_true", help="list copies of a picture once")
  asking.add_argument(
    "--rerank", action="store_true", help="prefer images that look like others of the best"
  )
  asking.add_argument("--top", type=int, default=20, help="images per query (default: 20)")
  asking.add_argument("--sheet", help="draw the results to this PNG file")
  asking.add_argument("--json", action="store_true", help="print one JSON object per query")
  asking.add_argument("--run", help=moved)
  asking.set_defaults(command="query")

  serving = commands.add_parser("serve", help="serve a web page to search with")
  serving.add_argument("--index", required=True, help="folder of the index")
  serving.add_argument("--run", help=moved)
  serving.add_argument(
    "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
  )
  serving.add_argument(
    "--name",
    action="append",
    default=[],
    metavar="HOST",
    help="another name of the page in addresses, as of a DNS server or a proxy; may be repeated",
  )
  serving.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
  serving.add_argument("--top", type=int, default=20, help="images per page (default: 20)")
  serving.set_defaults(command="serve")

  exporting = commands.add_parser("export", help="write features and paths for other programs")
  exporting.add_argument("--index", required=True, help="folder of the index")
  exporting.add_argument("--format", choices=EXPORT_FORMATS, required=True)
  exporting.add_argument("--out", required=True, help="file to write")
  exporting.add_argument("--run", help=moved)
  exporting.set_defaults(command="export")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""

  def run() -> None:
    options = parse(argv)
    # Imported here: help and mistakes in flags should not wait for JAX.
    from dgia_jax.search import commands

    getattr(commands, options.command)(options)

  return cli.run(run, interrupted="stopped; the same command continues")


if __name__ == "__main__":
  sys.exit(main())
