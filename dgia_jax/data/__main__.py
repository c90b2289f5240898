"""Checks a dataset, builds it, or writes its annotations, before training.

  python -m dgia_jax.data check NAME --source FOLDER [--quick]
  python -m dgia_jax.data prepare NAME --source FOLDER [--data_dir DIR]
  python -m dgia_jax.data make FILE_OR_FOLDER --out FOLDER [--split 0.8,0.1,0.1]

`make` writes annotations for data in another form: CSV, a folder per person, Hugging Face's
imagefolder, Parquet or webdataset.

`check` exits with 0 if the dataset can be built as it is and with 1 if not; all commands exit with
2 if the command line is wrong or files cannot be read.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence

from dgia_jax import cli
from dgia_jax.data import catalog, datasets
from dgia_jax.data.dataset_files import DatasetFiles, open_dataset
from dgia_jax.data.manifest_readers import READERS, Columns
from dgia_jax.errors import UserError, printable


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""
  return cli.run(_run, argv, interrupted="interrupted: no half-built dataset is left behind")


def _run(argv: Sequence[str] | None) -> int:
  args = _parser().parse_args(argv)
  return args.run(args)


def _check(args: argparse.Namespace) -> int:
  from dgia_jax.data import check

  report = check.check(_open(args), quick=args.quick, show=args.show, workers=args.workers)
  print(report.text)
  return 1 if report.errors else 0


def _prepare(args: argparse.Namespace) -> int:
  datasets.check_name(args.name)
  image_size = _image_size(args.image_size) if args.image_size else None
  if args.name in catalog.LAYOUTS:
    if image_size:
      raise UserError(
        f"--image_size is for synth_pedes: image files of {args.name} are stored as they are, and"
        " resized in training to config.dataset.image_size"
      )
    from dgia_jax.data import check, tfds_builder

    opened = _open(args)
    for note in check.check(opened, quick=True, search=False).notes:
      print(f"note: {note}")
    builder = tfds_builder.build(
      opened,
      data_dir=datasets.resolved_data_dir(args.data_dir),
      holdout=args.holdout,
      workers=args.workers,
      skip_unreadable=args.skip_unreadable,
    )
  else:
    for flag in ("source", "annotations", "images", "holdout", "skip_unreadable", "allow_outside"):
      if getattr(args, flag):
        raise UserError(f"--{flag} is for image files: {args.name} is drawn")
    builder = datasets.load_builder(args.name, image_size=image_size, data_dir=args.data_dir)
  skipped = (builder.info.metadata or {}).get("skipped", [])
  for line in skipped:
    print(printable(f"skipped {line}"))
  if skipped:
    print(f"{len(skipped)} images could not be read and were left out")
  sizes = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
  print(printable(f"{args.name}: {sizes} images in {builder.data_dir}"))
  return 0


def _make(args: argparse.Namespace) -> int:
  from dgia_jax.data import manifest

  columns = Columns(
    image=args.image_column,
    captions=[name for name in args.caption_columns.split(",") if name],
    person=args.id_column,
    split=args.split_column,
  )
  written = manifest.make(
    args.source,
    args.out,
    form=args.form,
    columns=columns,
    images=args.images,
    fractions=manifest.parse_fractions(args.split) if args.split else (),
    seed=args.seed,
  )
  sizes = ", ".join(f"{split} {number}" for split, number in written.entries.items())
  print(printable(f"{written.file}: {sizes} images"))
  if written.without_caption:
    print(f"{written.without_caption} images without a caption were left out")
  if written.missing:
    print(
      printable(
        f"{len(written.missing)} of {sum(written.entries.values())} images are not in"
        f" {written.images}, first {written.missing[0]}: add them, or build the dataset without"
        " them (prepare --skip_unreadable)"
      )
    )
  files = shlex.join(["--annotations", str(written.file), "--images", str(written.images)])
  print(printable(f"next: {cli.program('data')} check custom {files}"))
  return 0


def _open(args: argparse.Namespace) -> DatasetFiles:
  datasets.check_name(args.name)
  if args.name not in catalog.LAYOUTS:
    raise UserError(f"{args.name} is drawn, not read from files: there is nothing to check")
  return open_dataset(
    args.name,
    source=args.source,
    annotations=args.annotations,
    images=args.images,
    allow_outside=args.allow_outside,
  )


def _image_size(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)\s*[x,]\s*(\d+)", text.strip())
  if not match or "0" in match.groups():
    raise UserError(f"--image_size {text}: give HEIGHTxWIDTH in pixels, such as 384x128")
  return int(match[1]), int(match[2])


def _whole_number(text: str) -> int:
  if not re.fullmatch("[0-9]{1,9}", text):
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
  return int(text)


def _parser() -> argparse.ArgumentParser:
  parser = cli.ArgumentParser(
    prog=cli.program("data"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True, metavar="check|prepare|make")
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument("name", help=", ".join(datasets.names()))
  shared.add_argument("--source", default="", help="folder with the dataset's files")
  shared.add_argument(
    "--annotations", default="", help="the JSON file, if it is not found in the folder"
  )
  shared.add_argument("--images", default="", help="folder that image paths are relative to")
  shared.add_argument(
    "--allow_outside",
    action="store_true",
    help="accept image paths and links that lead out of the dataset's folder",
  )
  shared.add_argument(
    "--workers", type=_whole_number, default=0, help="decoding threads; 0: one per core"
  )

  check = commands.add_parser("check", parents=[shared], help="report faults and unusual values")
  check.add_argument("--quick", action="store_true", help="do not decode the images")
  check.add_argument(
    "--show", type=_whole_number, default=10, help="number of paths to list of each kind"
  )
  check.set_defaults(run=_check)

  prepare = commands.add_parser("prepare", parents=[shared], help="build a dataset")
  prepare.add_argument(
    "--data_dir", default="", help="root of built datasets; $TFDS_DATA_DIR or ~/tensorflow_datasets"
  )
  prepare.add_argument(
    "--image_size", default="", help="HEIGHTxWIDTH in pixels at which synth_pedes is drawn"
  )
  prepare.add_argument(
    "--holdout",
    type=_whole_number,
    default=0,
    help="number of train people to hold out as val (ICFG-PEDES has no val: 310 is a "
    "tenth; 0, the default, is the papers' protocol)",
  )
  prepare.add_argument(
    "--skip_unreadable",
    action="store_true",
    help="leave out images that are missing or cannot be read, and list them",
  )
  prepare.set_defaults(run=_prepare)

  make = commands.add_parser("make", help="write annotations for data in another form")
  make.add_argument("source", help="file or folder with images and captions")
  make.add_argument("--out", required=True, help="folder for annotations.json")
  make.add_argument("--form", default="", choices=("", *READERS), help="if it cannot be detected")
  make.add_argument("--images", default="", help="folder that image paths are relative to")
  make.add_argument("--image_column", default="", help="column of image paths or images")
  make.add_argument("--caption_columns", default="", help="columns of captions: NAME,NAME,...")
  make.add_argument("--id_column", default="", help="column of the person's id")
  make.add_argument("--split_column", default="", help="column with train, val or test")
  make.add_argument(
    "--split", default="", help="fractions of the people in train, val and test: 0.8,0.1,0.1"
  )
  make.add_argument("--seed", type=_whole_number, default=0, help="of --split")
  make.set_defaults(run=_make)
  return parser


if __name__ == "__main__":
  sys.exit(main())
