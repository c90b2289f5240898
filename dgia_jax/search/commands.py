"""What the commands of `python -m dgia_jax.search` do; `__main__` reads their flags."""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from dgia_jax import bucket, cli, remote, sharding, user_files
from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError, printable
from dgia_jax.reporting import contact_sheet
from dgia_jax.search import export as export_lib
from dgia_jax.search import identities, index_files, web_page
from dgia_jax.search import index as index_lib
from dgia_jax.search.index import SearchIndex
from dgia_jax.search.matches import Match
from dgia_jax.search.query import UNKNOWN_WORDS, combine
from dgia_jax.search.retriever import Retriever


def index(options: argparse.Namespace) -> None:
  """Makes the index of a folder, or brings it up to date."""
  if options.batch_size < 1:
    raise UserError(f"--batch_size={options.batch_size}: give 1 or more")
  images = user_files.local_path(options.images, "--images")
  bucket.check(options.out, "--out")
  if options.compact and bucket.is_remote(options.out):
    raise UserError(
      f"--compact: --out={options.out} is in a bucket; compact a copy on this machine"
    )
  annotated = []
  if options.annotations:  # read first: a mistake should not cost hours
    annotated = identities.read_annotations(options.annotations, images)
  retriever = Retriever.from_pretrained(
    options.run,
    options.checkpoint,
    weights=options.weights,
    setting="--run",
    batch_size=options.batch_size,
  )
  with tqdm.tqdm(desc="embedding", unit=" images", disable=None, delay=1.0) as bar:

    def expect(count: int) -> None:
      bar.total = count  # `bar.reset` would show a bar even if there is nothing to do

    with remote.mirrored(options.out, "--out", deletes=True, notify=cli.print_to_stderr) as folder:
      report = index_lib.build(
        retriever,
        options.run,
        images,
        folder,
        bar.update,
        expect,
        verify=options.verify,
        annotated=annotated,
        compact=options.compact,
      )
  out = shlex.quote(options.out)
  print(
    f"{out}: {report.added:,} images added, {report.kept:,} kept,"
    f" {report.removed:,} removed, {len(report.unreadable):,} unreadable"
  )
  if options.compact:
    rows = "row" if report.dropped == 1 else "rows"
    print(f"  {report.dropped:,} {rows} of gone and changed images removed from the disk")
  if report.unsupported:
    counts = ", ".join(f"{suffix} {count:,}" for suffix, count in report.unsupported.items())
    total = sum(report.unsupported.values())
    print(f"  {total:,} files of types that cannot be read here: {counts}")
  if annotated:
    known = sum(image.person is not None for image in annotated)
    print(f"  {len(annotated):,} images have captions, {known:,} of them an identity")
  for path, reason in report.unreadable:
    print(printable(f"  skipped {shlex.quote(path)}: {reason}"))
  print("next, try:")
  print(f'  {cli.program("search")} query --index {out} "a woman in a red coat"')


def query(options: argparse.Namespace) -> None:
  """Prints the images that fit best and, on request, draws them."""
  texts = [*options.text, *_lines(options.file)]
  if not texts and not options.image:
    raise UserError("nothing to search for: give a description, --file or --image")
  if options.top < 1:
    raise UserError(f"--top={options.top}: give 1 or more")
  if any(not text.strip() for text in texts):
    raise UserError("a description is empty: give at least one word")
  for flag, paths in (("--image", options.image), ("--less_like", options.less_like)):
    for path in paths:
      user_files.check_regular(pathlib.Path(path), flag)
  retriever, index = open_index(options.index, options.run)
  names = [*texts, *(f"like {path}" for path in options.image)]
  more_NxD = np.concatenate([retriever.embed_texts(texts), retriever.embed_images(options.image)])
  less_NxD = retriever.embed_images(options.less_like)
  if options.together:
    names, queries, parts = [" + ".join(names)], [more_NxD], [(texts, options.image)]
  else:
    queries = list(more_NxD[:, None])
    parts = [([text], []) for text in texts] + [([], [path]) for path in options.image]
  names = [name + "".join(f" - {path}" for path in options.less_like) for name in names]
  results = index.matches_of_all(
    np.stack([combine(query_NxD, less_NxD) for query_NxD in queries]),
    options.top,
    [[*files, *options.less_like] for _, files in parts],
    only=options.only,
    fold=options.fold,
    rerank=options.rerank,
  )
  correct = [
    index.identities.correct(*part, [match.files for match in matches])
    for part, matches in zip(parts, results, strict=True)
  ]
  for name, matches in zip(names, results, strict=True):
    if not matches:
      paths = f" whose path matches {options.only}" if options.only else ""
      cli.print_to_stderr(f"{printable(name)}: no image was found{printable(paths)}")
  for text in texts:
    if not retriever.knows_a_word_of(text):
      cli.print_to_stderr(f"{printable(text)}: {UNKNOWN_WORDS}")
  if options.json:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    for name, matches, marks in zip(names, results, correct, strict=True):
      rows = [
        {"path": str(match.path), "score": round(match.score, 6)}
        | ({"copies": [str(path) for path in match.copies]} if match.copies else {})
        | ({"correct": marks[number]} if marks else {})
        for number, match in enumerate(matches)
      ]
      line = {"query": name, "results": rows}
      print(json.dumps(line, ensure_ascii=encoding != "utf8", allow_nan=False))
  else:
    _print_results(names, results, correct)
  if options.sheet:
    draw_sheet(names, results, correct, options.sheet)


def serve(options: argparse.Namespace) -> None:
  """Serves the web page until interrupted."""
  if not 1 <= options.top <= web_page.MAX_TOP:
    raise UserError(f"--top={options.top}: give 1 to {web_page.MAX_TOP}")
  if not 0 < options.port < 2**16:
    raise UserError(f"--port={options.port}: give 1 to 65535")
  for name in options.name:
    if not re.fullmatch(r"[^\s/:?#@\[\]]+", name):
      raise UserError(f"--name={name}: give a host's name alone, such as photos.example")
  retriever, index = open_index(options.index, options.run)
  searcher = web_page.Searcher(retriever, index)
  web_page.serve(searcher, options.host, options.port, options.top, options.name)


def export(options: argparse.Namespace) -> None:
  """Writes the features and paths of an index for other programs."""
  _, index = open_index(options.index, options.run)
  export_lib.export(index, options.out, options.format)
  print(f"{shlex.quote(options.out)}: {len(index):,} images")


def open_index(
  folder: pathlib.Path | str, model: pathlib.Path | str | None = None
) -> tuple[Retriever, SearchIndex]:
  """Opens an index and the model it was made with.

  Args:
    folder: the index.
    model: where the model is now, if it was moved.

  Raises:
    UserError: one of them cannot be read, or the index was made with another model.
  """
  # Imported here: Orbax is slow to import and only runs need it.
  from dgia_jax.training import run_weights

  folder, shown = remote.local_copy(folder, "--index"), folder
  with _naming_the_address(folder, shown):
    about = index_files.read_about(folder)
  setting = "--run" if model else "--index"
  is_given, model = bool(model), str(model or about["model"])
  if not bucket.is_remote(model) and os.path.isabs(model) and not os.path.isdir(model):
    if is_given:
      raise UserError(f"--run={model}: no such folder")
    raise UserError(
      f"--index={shown} was made with the model in {model}, which is gone: give --run"
    )
  # The index first: it verifies its codes while the model is loaded.
  mesh = sharding.local_mesh()
  with _naming_the_address(folder, shown):
    index = SearchIndex(folder, mesh)
  for choice, weights in itertools.product(("best", "last"), run_weights.kinds(model)):
    retriever = Retriever.from_pretrained(
      model, choice, weights=weights, setting=setting, mesh=mesh
    )
    if retriever.digest() == about["model_digest"]:
      return retriever, index
  raise UserError(
    f"--index={shown} was made with another model than the one in {model}: index again, or give"
    " --run"
  )


@contextlib.contextmanager
def _naming_the_address(folder: pathlib.Path, shown: pathlib.Path | str) -> Iterator[None]:
  """Has an error of an index in a bucket name its address, rather than the copy that was read."""
  try:
    yield
  except UserError as error:
    if not bucket.is_remote(shown):
      raise
    is_damaged = f"{folder}/" in str(error)  # it is about a file
    reason = str(error).partition("; delete ")[0].removeprefix("--index: ")
    reason = reason.replace(str(folder), str(shown))
    advice = f"; delete its copy, {folder}, and run the same command again" if is_damaged else ""
    prefix = "" if reason.startswith("--index=") else "--index: "
    raise UserError(f"{prefix}{reason}{advice}") from error


def draw_sheet(
  names: Sequence[str],
  results: Sequence[Sequence[Match]],
  correct: Sequence[Sequence[bool] | None],
  path: pathlib.Path | str,
) -> None:
  """Draws the results, one block per query, and frames correct ones where they are known.

  Raises:
    UserError: the picture cannot be written, or an image is gone.
  """
  if not any(results):
    raise UserError(f"--sheet={path}: no image was found that could be drawn")
  path = user_files.expanded(path, "--sheet")
  height = contact_sheet.CELL_HEIGHT
  try:
    # Each file is read once and reduced at once: large pictures would fill the memory.
    paths = list(dict.fromkeys(match.path for matches in results for match in matches))
    read = lambda path: images_lib.read_thumbnail(path, 4 * height, height)
    thumbnails = dict(zip(paths, images_lib.ordered_map(read, paths, 0), strict=True))
    images = [[thumbnails[match.path] for match in matches] for matches in results]
    scores = [[match.score for match in matches] for matches in results]
    contact_sheet.contact_sheet(names, images, correct, path, scores=scores)
  except (OSError, images_lib.UnreadableImageError) as error:
    raise UserError(f"--sheet={path}: cannot be drawn ({error})") from error


def _lines(path: str | None) -> list[str]:
  """The descriptions in a text file, one per line; empty lines are left out."""
  if not path:
    return []
  lines = user_files.read_text(path, "--file").splitlines()
  return [line.strip() for line in lines if line.strip()]


def _print_results(
  names: Sequence[str],
  results: Sequence[Sequence[Match]],
  correct: Sequence[Sequence[bool] | None],
) -> None:
  """Prints plain lines; a table would cut long paths."""
  for name, matches, marks in zip(names, results, correct, strict=True):
    print(printable(name))
    for number, match in enumerate(matches):
      copies = f"  (and {len(match.copies)} more of it)" if match.copies else ""
      mark = "  correct" if marks and marks[number] else ""
      path = printable(shlex.quote(str(match.path)))
      print(f"{number + 1:>4}  {match.score:.3f}  {path}{copies}{mark}")
