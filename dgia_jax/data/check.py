"""Checks a dataset before training and reports on one page.

An "error" stops a build or loses data; the command then exits with 1. A "note" is anything else
that is unusual, such as sizes that differ from the published ones.
"""

import collections
import os
from collections.abc import Iterable, Mapping, Sequence

import tqdm

from dgia_jax.data import catalog, check_captions
from dgia_jax.data import images as images_lib
from dgia_jax.data.annotations import SPLITS, ImageRecord
from dgia_jax.data.catalog import Counts, Release
from dgia_jax.data.data_report import DataReport, first_items
from dgia_jax.data.dataset_files import DatasetFiles

TINY_PIXELS = 16
_COUNTED = ("people", "images", "captions")
_UNUSABLE = (
  "identities are unusable: training does not need them, but the precision of mined relations is "
  "not reported"
)


def check(
  files: DatasetFiles,
  *,
  quick: bool = False,
  search: bool = True,
  show: int = 10,
  workers: int = 0,
) -> DataReport:
  """Checks the files of a dataset.

  Args:
    files: of the dataset.
    quick: do not decode the images, which takes minutes for a large dataset.
    search: look for missing images in other folders of the dataset, to say where they are.
    show: number of paths or captions to list of each kind; counts are always complete.
    workers: decoding threads, 0 for one per core.

  Returns:
    The report; its `errors` are empty if the dataset can be built as it is.
  """
  report = DataReport(f"{files.layout.title}: check of {files.annotations.files[0]}")
  _check_annotations(report, files)
  _check_splits(report, files)
  _check_identities(report, files)
  _check_images(report, files, quick, search, show, workers)
  check_captions.check_captions(report, files.annotations, show)
  report.add_section("verdict")
  if report.errors:
    report.add_line(
      f"{len(report.errors)} error(s): prepare stops on these; {len(report.notes)} note(s)"
    )
  else:
    report.add_line(f"fine: can be built; {len(report.notes)} note(s)")
  return report


def count(records: Iterable[ImageRecord]) -> Counts:
  """People, images and captions of some records."""
  records = list(records)
  return Counts(
    len({record.person for record in records}),
    len(records),
    sum(len(record.captions) for record in records),
  )


def _check_annotations(report: DataReport, files: DatasetFiles) -> None:
  annotations = files.annotations
  report.add_section("files")
  for file in annotations.files:
    report.add_line(f"annotations  {file}")
  report.add_line(f"images       {files.image_folder}")
  for line in annotations.errors:
    report.add_error(line)
  for line in annotations.notes:
    report.add_note(line)
  if not annotations.records:
    report.add_error("no usable entry in the annotations")


def _check_splits(report: DataReport, files: DatasetFiles) -> None:
  records = files.annotations.records
  counts_of = {split: count(r for r in records if r.split == split) for split in SPLITS}
  counts_of = {split: counts for split, counts in counts_of.items() if counts.images}
  table = {**counts_of, "all": count(records)}
  releases = files.layout.releases
  nearest = min(releases, key=lambda release: _difference(table, release), default=None)
  report.add_section("splits" + (f" (compared with: {nearest.name})" if nearest else ""))
  report.add_line(f"{'':7}" + "".join(f"{field:>22}" for field in _COUNTED))
  for split, counts in table.items():
    published = nearest.splits.get(split) if nearest else None
    cells = [
      _cell(getattr(counts, field), getattr(published, field) if published else None)
      for field in _COUNTED
    ]
    report.add_line(f"{split:7}" + "".join(f"{cell:>22}" for cell in cells))
  if nearest and _difference(table, nearest):
    report.add_note(
      "sizes differ from every known release: results cannot be compared with published "
      "ones; are annotations and split the right ones?"
    )
  elif nearest and nearest is not releases[0]:
    people = ", ".join(f"{split} {counts.people}" for split, counts in releases[0].splits.items())
    report.add_note(
      f"these are the sizes of the {nearest.name!r}; papers report on {people} people"
    )
  if "train" not in counts_of:
    report.add_note("no train split: the dataset can be evaluated on, not trained on")
  if "val" not in counts_of:
    report.add_note(
      "no val split: the best epoch cannot be chosen without looking at test; hold out train "
      "people with --holdout N, or keep the last epoch"
    )
  if "test" not in counts_of:
    report.add_note("no test split: the dataset can be trained on, not tested on")
  for text in files.layout.known_facts:
    report.add_line(f"known: {text}")


def _difference(sizes: Mapping[str, Counts], release: Release) -> int:
  """Distance of sizes from a release: the sum of absolute differences."""
  splits = ["all"] if "all" in release.splits else list(SPLITS)
  total, none = 0, Counts(0, 0, 0)
  for split in splits:
    actual, published = sizes.get(split, none), release.splits.get(split, none)
    total += sum(abs(getattr(actual, field) - getattr(published, field)) for field in _COUNTED)
  return total


def _cell(number: int, published: int | None) -> str:
  if published is None:
    return str(number)
  return f"{number} ok" if number == published else f"{number} (not {published})"


def _check_identities(report: DataReport, files: DatasetFiles) -> None:
  annotations, id_base = files.annotations, files.layout.id_base
  report.add_section("identities")
  report.add_line(annotations.identities)
  if annotations.identities != "known":
    report.add_note(
      f"ids are {annotations.identities}: in evaluation an image without an id counts as a person "
      "of its own, so other images of the same person count as wrong"
    )
  if annotations.identities == "unknown" and annotations.records:
    report.add_note(f"no entry has an 'id', so {_UNUSABLE}")
  if annotations.identities == "unknown" or not annotations.records:
    return
  images_of = collections.Counter(record.person for record in annotations.records)
  lowest = min(images_of)
  report.add_line(
    f"{len(images_of)} people, ids {lowest} to {max(images_of)}, "
    f"{min(images_of.values())} to {max(images_of.values())} images each"
  )
  train_ids = [record.person for record in annotations.records if record.split == "train"]
  if len(images_of) == 1:
    report.add_note(f"all images have the id {lowest}, so {_UNUSABLE}")
  elif len(train_ids) > 1 and len(set(train_ids)) == 1:
    report.add_note(f"all train images have the id {train_ids[0]}, so {_UNUSABLE}")
  elif len(train_ids) > 1 and len(set(train_ids)) == len(train_ids):
    report.add_note(f"no two train images have the same id, so {_UNUSABLE}")
  if id_base is not None and lowest != id_base:
    report.add_note(
      f"ids start at {lowest}, in the published files at {id_base}: renumbered or cut?"
    )
  if lowest < 0:
    report.add_note(
      f"negative ids count as one person each (id {lowest}: {images_of[lowest]} images)"
      "; omit 'id' where the person is unknown"
    )
  splits_of = collections.defaultdict(set)
  for record in annotations.records:
    splits_of[record.person].add(record.split)
  shared = sorted(person for person, splits in splits_of.items() if len(splits) > 1)
  if shared:
    report.add_note(
      f"{len(shared)} people are in more than one split: either ids restart in each "
      "split, or the model is tested on people it was trained on",
      [f"ids {', '.join(map(str, shared[:10]))}"],
    )


def _check_images(
  report: DataReport, files: DatasetFiles, quick: bool, search: bool, show: int, workers: int
) -> None:
  report.add_section("images")
  records = files.annotations.records
  missing = files.missing()
  report.add_line(f"{len(records) - len(missing)} of {len(records)} files found")
  if missing:
    _report_missing(report, files, files.folder_with_missing() if search else None, show)
  present = [path for path in files.paths if path is not None]
  repeated = [path for path, times in collections.Counter(present).items() if times > 1]
  if repeated:
    report.add_note(
      f"{len(repeated)} files belong to two entries each", first_items(repeated, show)
    )
  if quick:
    report.add_line("not decoded (--quick)")
    return
  _check_decoding(report, files, show, workers)
  unused = _unused_images(files, set(present))
  if unused:
    report.add_note(f"{len(unused)} image files that no entry names", first_items(unused, show))


def _report_missing(
  report: DataReport, files: DatasetFiles, elsewhere: str | None, show: int
) -> None:
  records_of = sorted(files.missing_folders().items())
  folders = [(folder, records) for folder, records in records_of if folder]
  mend = f"; they are in {elsewhere}: give --images {elsewhere}" if elsewhere else ""
  if len(folders) == 1:
    ((folder, records),) = folders
    report.add_error(f"missing folder {folder}: {_loss(records)}{mend}")
  elif folders:
    records = [record for _, records in folders for record in records]
    report.add_error(
      f"missing folders: {len(folders)}, {_loss(records)}{mend}",
      first_items([f"{folder}: {_loss(records)}" for folder, records in folders], show),
    )
  for folder, records in records_of:
    if not folder:
      report.add_error(
        f"missing files in folders that exist: {_loss(records)}{mend}",
        first_items([record.path for record in records], show),
      )


def _loss(records: Sequence[ImageRecord]) -> str:
  return f"{len(records)} images, {count(records).captions} pairs lost"


def _check_decoding(report: DataReport, files: DatasetFiles, show: int, workers: int) -> None:
  def inspect(path: str) -> images_lib.ImageFacts | images_lib.UnreadableImageError:
    try:
      return images_lib.inspect(path)
    except images_lib.UnreadableImageError as error:
      return error

  rows = [
    (record, path)
    for record, path in zip(files.annotations.records, files.paths, strict=True)
    if path is not None
  ]
  results = images_lib.ordered_map(inspect, [path for _, path in rows], workers)
  results = list(
    tqdm.tqdm(results, "decoding", len(rows), unit=" images", disable=None, leave=False)
  )
  unreadable, facts, tiny = [], [], []
  for (record, path), result in zip(rows, results, strict=True):
    if isinstance(result, images_lib.UnreadableImageError):
      unreadable.append((record, result))
      continue
    facts.append(result)
    if min(result.height, result.width) < TINY_PIXELS:
      tiny.append(path)
  if unreadable:
    report.add_error(
      f"unreadable: {_loss([record for record, _ in unreadable])}",
      first_items([str(error) for _, error in unreadable], show),
    )
  if facts:
    heights, widths = [f.height for f in facts], [f.width for f in facts]
    modes = collections.Counter(f.mode for f in facts)
    report.add_line(
      f"{len(facts)} decoded: height {min(heights)} to {max(heights)}, width "
      f"{min(widths)} to {max(widths)} pixels; "
      + ", ".join(f"{mode} {n}" for mode, n in modes.most_common())
    )
  if tiny:
    report.add_note(
      f"{len(tiny)} images under {TINY_PIXELS} pixels high or wide", first_items(tiny, show)
    )


def _unused_images(files: DatasetFiles, used: set[str]) -> list[str]:
  root = files.image_folder
  return sorted(
    os.path.relpath(os.path.join(folder, name), root)
    for folder, _, names in os.walk(root)
    for name in names
    if name.lower().endswith(catalog.IMAGE_ENDINGS) and os.path.join(folder, name) not in used
  )
