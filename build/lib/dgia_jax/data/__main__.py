"""Look at a dataset, or build it, before training.

  python -m dgia_jax.data check NAME --source FOLDER [--quick]
  python -m dgia_jax.data prepare NAME --source FOLDER [--data_dir DIR]

`check` exits with 0 when the dataset can be built as it is, with 1 when not; both commands exit
with 2 on a mistake in what was asked for.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from dgia_jax.data import catalog, datasets
from dgia_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""
  args = _parser().parse_args(argv)
  try:
    return args.run(args)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted: nothing half-built was left behind", file=sys.stderr)
    return 130


def _check(args: argparse.Namespace) -> int:
  from dgia_jax.data import check

  report = check.check(_open(args), quick=args.quick, show=args.show, workers=args.workers)
  print(report.text)
  return 1 if report.errors else 0


def _prepare(args: argparse.Namespace) -> int:
  datasets.check_name(args.name)
  options = {}
  image_size = _image_size(args.image_size) if args.image_size else None
  if args.name in catalog.LAYOUTS:
    if image_size:
      raise UserError(
        f"--image_size is for synth_pedes: image files of {args.name} are stored as they are, and"
        " resized in training to config.dataset.image_size"
      )
    from dgia_jax.data import check

    for note in check.check(_open(args), quick=True).notes:
      print(f"note: {note}")
    options = dict(
      holdout=args.holdout,
      workers=args.workers,
      skip_unreadable=args.skip_unreadable,
    )
  builder = datasets.load_builder(
    args.name,
    image_size=image_size,
    data_dir=args.data_dir,
    source=args.source,
    annotations=args.annotations,
    images=args.images,
    **options,
  )
  skipped = (builder.info.metadata or {}).get("skipped", [])
  for line in skipped:
    print(f"skipped {line}")
  if skipped:
    print(f"{len(skipped)} images could not be read and were left out")
  sizes = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
  print(f"{args.name}: {sizes} images in {builder.data_dir}")
  return 0


def _open(args: argparse.Namespace):
  from dgia_jax.data import dataset_files

  datasets.check_name(args.name)
  if args.name not in catalog.LAYOUTS:
    raise UserError(f"{args.name} is drawn, not read from files: there is nothing to check")
  return dataset_files.open_dataset(
    args.name, source=args.source, annotations=args.annotations, images=args.images
  )


def _image_size(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)\s*[x,]\s*(\d+)", text.strip())
  if not match or "0" in match.groups():
    raise UserError(f"--image_size {text}: give HEIGHTxWIDTH in pixels, such as 384x128")
  return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m dgia_jax.data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True, metavar="check|prepare")
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument("name", help=", ".join(datasets.names()))
  shared.add_argument("--source", default="", help="folder with the dataset's files")
  shared.add_argument("--annotations", default="", help="the JSON file, if not found by itself")
  shared.add_argument("--images", default="", help="folder that image paths are relative to")
  shared.add_argument("--workers", type=int, default=0, help="decoding threads; 0: one a core")

  check = commands.add_parser("check", parents=[shared], help="report what is wrong or unusual")
  check.add_argument("--quick", action="store_true", help="do not decode the images")
  check.add_argument("--show", type=int, default=10, help="paths to list of each kind")
  check.set_defaults(run=_check)

  prepare = commands.add_parser("prepare", parents=[shared], help="build a dataset")
  prepare.add_argument(
    "--data_dir", default="", help="root of built datasets; $TFDS_DATA_DIR or ~/tensorflow_datasets"
  )
  prepare.add_argument(
    "--image_size", default="", help="HEIGHTxWIDTH in pixels that synth_pedes is drawn at"
  )
  prepare.add_argument(
    "--holdout",
    type=int,
    default=0,
    help="train people to set apart as val (ICFG-PEDES has none: 310 is a "
    "tenth; 0, the default, is the papers' protocol)",
  )
  prepare.add_argument(
    "--skip_unreadable",
    action="store_true",
    help="leave out images that are missing or cannot be read, and list them",
  )
  prepare.set_defaults(run=_prepare)
  return parser


if __name__ == "__main__":
  sys.exit(main())
