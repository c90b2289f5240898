"""Search a folder of images by description, with a trained model:

python -m dgia_jax.search index --run runs/demo --images FOLDER --out INDEX
python -m dgia_jax.search query --index INDEX "a woman in a red coat with a backpack"
python -m dgia_jax.search query --index INDEX --image photo.jpg --top 5 --sheet found.png
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import tqdm

from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError
from dgia_jax.reporting import contact_sheet
from dgia_jax.search import index as index_lib
from dgia_jax.search import web_page
from dgia_jax.search.retriever import Retriever


def index(options) -> None:
  """Makes an index of a folder, or brings it up to date."""
  retriever = Retriever.open(options.run, choice=options.checkpoint, batch_size=options.batch_size)
  with tqdm.tqdm(desc="embedding", unit=" images", disable=None, delay=1.0) as bar:

    def expect(count):
      bar.total = count  # `bar.reset` would show a bar even when there is nothing to do

    report = index_lib.build(
      retriever, options.run, options.images, options.out, bar.update, expect
    )
  print(
    f"{options.out}: {report.added:,} images added, {report.kept:,} kept,"
    f" {report.forgotten:,} forgotten, {len(report.unreadable):,} unreadable"
  )
  for path, reason in report.unreadable:
    print(f"  skipped {path}: {reason}")
  print("next, try:")
  print(f'  python -m dgia_jax.search query --index {options.out} "a woman in a red coat"')


def query(options) -> None:
  """Prints, and on request draws, the images that fit best."""
  texts = [*options.text, *_lines(options.file)]
  if not texts and not options.image:
    raise UserError("nothing to search for: give a description, --file or --image")
  if options.top < 1:
    raise UserError(f"--top={options.top}: give 1 or more")
  retriever, found_in = open_index(options.index, options.run)
  asked, features = [], []
  if texts:
    asked += texts
    features += [*retriever.embed_texts(texts)]
  if options.image:
    asked += [f"like {path}" for path in options.image]
    features += [*retriever.embed_images(options.image)]
  scores, rows = found_in.search(features, options.top)
  answers = [
    [
      {"path": str(found_in.images / found_in.paths[row]), "score": round(float(score), 6)}
      for row, score in zip(found, its_scores, strict=True)
    ]
    for found, its_scores in zip(rows, scores, strict=True)
  ]
  if options.json:
    for text, answer in zip(asked, answers, strict=True):
      print(json.dumps({"query": text, "results": answer}, ensure_ascii=False))
  else:
    _print_answers(asked, answers)
  if options.sheet:
    draw_sheet(asked, answers, options.sheet)


def serve_page(options) -> None:
  """Serves the web page until interrupted."""
  retriever, opened = open_index(options.index, options.run)
  searcher = web_page.Searcher(retriever, opened)
  web_page.serve(searcher, len(opened), options.host, options.port, options.top)


def open_index(folder, model=None):
  """The model an index was made with, and the index.

  Args:
    folder: the index.
    model: folder of the model, when it has moved since.

  Returns:
    Retriever and SearchIndex.

  Raises:
    UserError: one of them cannot be read, or they do not belong together.
  """
  about = index_lib.read_about(folder)
  model = model or about["model"]
  if not os.path.isdir(model):
    raise UserError(
      f"--index={folder} was made with the model in {model}, which is gone: give --run"
    )
  for choice in ("best", "last"):
    retriever = Retriever.open(model, choice=choice)
    if retriever.digest() == about["model_digest"]:
      return retriever, index_lib.SearchIndex(folder, retriever.mesh)
  raise UserError(
    f"--index={folder} was made with another model than the one in {model}: index again, or give"
    " --run"
  )


def draw_sheet(asked, answers, path) -> None:
  """A picture of the answers, one row per query.

  Raises:
    UserError: the picture cannot be written, or an image is gone.
  """
  try:
    images = [[np.asarray(images_lib.read_rgb(one["path"])) for one in row] for row in answers]
    scores = [[one["score"] for one in row] for row in answers]
    contact_sheet.contact_sheet(asked, images, None, path, scores=scores)
  except (OSError, images_lib.UnreadableImageError) as error:
    raise UserError(f"--sheet={path}: cannot be drawn ({error})") from error


def _lines(path):
  """Descriptions in a text file, one a line, empty lines left out."""
  if not path:
    return []
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--file={path}: cannot be read ({error})") from error
  return [line.strip() for line in text.splitlines() if line.strip()]


def _print_answers(asked, answers):
  """Plain lines: a table would cut long paths."""
  for text, answer in zip(asked, answers, strict=True):
    print(text)
    for rank, one in enumerate(answer, start=1):
      print(f"{rank:>4}  {one['score']:.3f}  {one['path']}")


def parse(argv: Sequence[str] | None):
  """The command line as a namespace with `run_command`, the function to call with it."""
  parser = argparse.ArgumentParser(
    prog="python -m dgia_jax.search", description=__doc__.split("\n")[0].rstrip(":")
  )
  commands = parser.add_subparsers(required=True)
  making = commands.add_parser("index", help="embed a folder of images, or what is new in it")
  making.add_argument("--run", required=True, help="folder of a run, or a Hugging Face CLIP folder")
  making.add_argument("--images", required=True, help="folder of images, searched below as well")
  making.add_argument("--out", required=True, help="folder of the index")
  making.add_argument("--checkpoint", choices=("best", "last"), default="best")
  making.add_argument("--batch_size", type=int, default=64, help="images embedded at once")
  making.set_defaults(run_command=index)
  asking = commands.add_parser("query", help="find images by description, or like an image")
  asking.add_argument("text", nargs="*", help="descriptions")
  asking.add_argument("--index", required=True, help="folder of the index")
  asking.add_argument("--file", help="text file with a description a line")
  asking.add_argument("--image", action="append", default=[], help="find images like this one")
  asking.add_argument("--top", type=int, default=20, help="images per query (default: 20)")
  asking.add_argument("--sheet", help="draw the images found to this PNG")
  asking.add_argument("--json", action="store_true", help="a JSON object a query")
  asking.add_argument("--run", help="folder of the model, when it has moved since")
  asking.set_defaults(run_command=query)
  showing = commands.add_parser("serve", help="a web page to search with")
  showing.add_argument("--index", required=True, help="folder of the index")
  showing.add_argument("--run", help="folder of the model, when it has moved since")
  showing.add_argument(
    "--host", default="127.0.0.1", help="who may connect (default: this machine)"
  )
  showing.add_argument("--port", type=int, default=7860)
  showing.add_argument("--top", type=int, default=20, help="images shown at first")
  showing.set_defaults(run_command=serve_page)
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""
  options = parse(argv)
  try:
    options.run_command(options)
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
