"""One page on a dataset before anything is trained on it: what is there, and what is wrong or odd.

An "error" is something that makes a build stop (or lose data): exit code 1. A "note" is everything
else worth knowing, such as sizes that differ from the published ones.
"""

import collections
import functools
import os
import re
import unicodedata
from collections.abc import Iterable

import tqdm

from dgia_jax.data import images as images_lib
from dgia_jax.data.annotations import SPLITS, ImageRecord
from dgia_jax.data.catalog import Counts, Release
from dgia_jax.data.data_report import DataReport, first_items
from dgia_jax.data.dataset_files import DatasetFiles

CONTEXT_TOKENS = 77
SHORT_WORDS = 3
TINY_PIXELS = 16
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_WORD = re.compile(r"[^\W\d_]+|\d|[^\s\w]+")
_CODE = re.compile(r"[{}<>\\|]|https?://|&\w+;|\w\(\)|==|;\s*$")


def check(
  source: DatasetFiles, *, quick: bool = False, show: int = 10, workers: int = 0
) -> DataReport:
  """Checks an opened dataset.

  Args:
    source: the dataset's files.
    quick: do not decode the images (minutes for a large dataset).
    show: how many paths or captions to list of each kind; the count is always complete.
    workers: decoding threads, 0 for one a core.

  Returns:
    The report; `errors` is empty when the dataset can be built as it is.
  """
  report = DataReport(f"{source.layout.title}: check of {source.annotations.files[0]}")
  _files(report, source)
  _splits(report, source)
  _identities(report, source)
  _images(report, source, quick, show, workers)
  _captions(report, source.annotations.records, show)
  report.section("verdict")
  if report.errors:
    report.say(
      f"{len(report.errors)} error(s): prepare stops on these; {len(report.notes)} note(s)"
    )
  else:
    report.say(f"fine: can be built; {len(report.notes)} note(s)")
  return report


def _files(report: DataReport, source: DatasetFiles):
  content = source.annotations
  report.section("files")
  for file in content.files:
    report.say(f"annotations  {file}")
  report.say(f"images       {source.image_folder}")
  for line in content.errors:
    report.error(line)
  for line in content.notes:
    report.note(line)
  if not content.records:
    report.error("no usable entry in the annotations")


def count(records: Iterable[ImageRecord]) -> Counts:
  """People, images and captions of some records."""
  records = list(records)
  return Counts(
    len({record.person for record in records}),
    len(records),
    sum(len(record.captions) for record in records),
  )


def _splits(report: DataReport, source: DatasetFiles):
  records = source.annotations.records
  found = {split: count(record for record in records if record.split == split) for split in SPLITS}
  found = {split: counts for split, counts in found.items() if counts.images}
  compared = {**found, "all": count(records)}
  releases = source.layout.releases
  nearest = min(releases, key=lambda release: _difference(compared, release), default=None)
  report.section("splits" + (f" (compared with: {nearest.name})" if nearest else ""))
  report.say(f"{'':7}{'people':>22}{'images':>22}{'captions':>22}")
  for split, counts in compared.items():
    known = nearest.splits.get(split) if nearest else None
    cells = [
      _cell(getattr(counts, field), known and getattr(known, field))
      for field in ("people", "images", "captions")
    ]
    report.say(f"{split:7}" + "".join(f"{cell:>22}" for cell in cells))
  if nearest and _difference(compared, nearest):
    report.note(
      "sizes differ from every known release: results cannot be compared with published "
      "ones; are annotations and split the right ones?"
    )
  elif nearest and nearest is not releases[0]:
    expected = ", ".join(f"{split} {known.people}" for split, known in releases[0].splits.items())
    report.note(f"these are the sizes of the {nearest.name!r}; papers report on {expected} people")
  if "train" not in found:
    report.note("no train split: it can be evaluated on, not trained on")
  if "val" not in found:
    report.note(
      "no val split: nothing honest to choose the best epoch on; set train people apart "
      "with --holdout N, or choose on nothing (keep the last epoch)"
    )
  if "test" not in found:
    report.note("no test split: it can be trained on, not tested on")
  for text in source.layout.oddities:
    report.say(f"known: {text}")


def _difference(found: dict[str, Counts], release: Release) -> int:
  """How far sizes are from a release: sum of absolute differences."""
  splits = ["all"] if "all" in release.splits else list(SPLITS)
  total, none = 0, Counts(0, 0, 0)
  for split in splits:
    have, known = found.get(split, none), release.splits.get(split, none)
    total += sum(
      abs(getattr(have, field) - getattr(known, field))
      for field in ("people", "images", "captions")
    )
  return total


def _cell(found: int, known: int | None) -> str:
  if known is None:
    return str(found)
  return f"{found} ok" if found == known else f"{found} (not {known})"


def _identities(report: DataReport, source: DatasetFiles):
  content, base = source.annotations, source.layout.id_base
  report.section("identities")
  if content.identities != "known":
    report.note(
      f"ids are {content.identities}: an image without an id counts as a person of its "
      "own in evaluation, so other images of the same person count as wrong"
    )
  if content.identities == "unknown" or not content.records:
    return
  images_of = collections.Counter(record.person for record in content.records)
  lowest = min(images_of)
  report.say(
    f"{len(images_of)} people, ids {lowest} to {max(images_of)}, "
    f"{min(images_of.values())} to {max(images_of.values())} images each"
  )
  if base is not None and lowest != base:
    report.note(f"ids start at {lowest}, in the published files at {base}: renumbered or cut?")
  if lowest < 0:
    report.note(
      f"negative ids stand for one person each (id {lowest}: {images_of[lowest]} images)"
      "; leave 'id' out where the person is unknown"
    )
  splits_of = collections.defaultdict(set)
  for record in content.records:
    splits_of[record.person].add(record.split)
  shared = sorted(person for person, splits in splits_of.items() if len(splits) > 1)
  if shared:
    report.note(
      f"{len(shared)} people are in more than one split: either ids restart in each "
      "split, or training has seen who is tested",
      [f"ids {shared[:10]}"],
    )


def _images(report: DataReport, source: DatasetFiles, quick: bool, show: int, workers: int):
  report.section("images")
  records, missing = source.annotations.records, source.missing()
  report.say(f"{len(records) - len(missing)} of {len(records)} files found")
  for folder, lost in sorted(source.missing_folders().items()):
    size = f"{len(lost)} images, {count(lost).captions} pairs lost"
    if folder:
      report.error(f"missing folder {folder}: {size}")
    else:
      report.error(
        f"missing files in folders that exist: {size}",
        first_items([record.path for record in lost], show),
      )
  present = [path for path in source.paths if path is not None]
  same = [path for path, times in collections.Counter(present).items() if times > 1]
  if same:
    report.note(f"{len(same)} files belong to two entries each", first_items(same, show))
  if quick:
    report.say("not decoded (--quick)")
    return
  _decoded(report, source, show, workers)
  unused = _unused(source, set(present))
  if unused:
    report.note(f"{len(unused)} image files that no entry names", first_items(unused, min(show, 3)))


def _decoded(report: DataReport, source: DatasetFiles, show: int, workers: int):
  def look(path):
    try:
      return images_lib.inspect(path)
    except images_lib.UnreadableImageError as error:
      return error

  rows = [
    (record, path)
    for record, path in zip(source.annotations.records, source.paths, strict=True)
    if path is not None
  ]
  looked = images_lib.ordered_map(look, [path for _, path in rows], workers)
  looked = list(tqdm.tqdm(looked, "decoding", len(rows), unit=" images", disable=None, leave=False))
  bad = [
    (record, facts)
    for (record, _), facts in zip(rows, looked, strict=True)
    if isinstance(facts, images_lib.UnreadableImageError)
  ]
  good = [facts for facts in looked if isinstance(facts, images_lib.ImageFacts)]
  if bad:
    report.error(
      f"unreadable: {len(bad)} images, {count(r for r, _ in bad).captions} pairs lost",
      first_items([str(error) for _, error in bad], show),
    )
  if good:
    heights, widths = [f.height for f in good], [f.width for f in good]
    modes = collections.Counter(facts.mode for facts in good)
    report.say(
      f"{len(good)} decoded: height {min(heights)} to {max(heights)}, width "
      f"{min(widths)} to {max(widths)} pixels; "
      + ", ".join(f"{mode} {n}" for mode, n in modes.most_common())
    )
  tiny = [
    path
    for (_, path), facts in zip(rows, looked, strict=True)
    if isinstance(facts, images_lib.ImageFacts) and min(facts.height, facts.width) < TINY_PIXELS
  ]
  if tiny:
    report.note(
      f"{len(tiny)} images under {TINY_PIXELS} pixels high or wide", first_items(tiny, show)
    )


def _unused(source: DatasetFiles, used: set[str]) -> list[str]:
  root = source.image_folder
  return sorted(
    os.path.relpath(os.path.join(folder, name), root)
    for folder, _, names in os.walk(root)
    for name in names
    if name.lower().endswith(_IMAGE_ENDINGS) and os.path.join(folder, name) not in used
  )


def _captions(report: DataReport, records: tuple[ImageRecord, ...], show: int):
  report.section("captions")
  captions = [(caption, record.person) for record in records for caption in record.captions]
  if not captions:
    return
  lengths = [len(_WORD.findall(caption)) for caption, _ in captions]
  report.say(
    f"{len(captions)} captions of {min(lengths)} to {max(lengths)} words and marks, mean "
    f"{sum(lengths) / len(lengths):.1f}"
  )
  people_of, uses = collections.defaultdict(set), collections.Counter()
  for caption, person in captions:
    text = " ".join(caption.casefold().split())
    people_of[text].add(person)
    uses[text] += 1
  copied = sorted(
    (text for text, people in people_of.items() if len(people) > 1),
    key=lambda text: -len(people_of[text]),
  )
  if copied:
    report.note(
      f"{len(copied)} captions are used for several people, by {sum(uses[t] for t in copied)} "
      "pairs: as queries these have answers that count as wrong",
      first_items([f"{len(people_of[t])} people: {t[:70]!r}" for t in copied], min(show, 3)),
    )
  for what, test in (
    (
      f"longer than about {CONTEXT_TOKENS} tokens, cut at the end",
      lambda caption, length: length + 2 > CONTEXT_TOKENS,
    ),
    (f"shorter than {SHORT_WORDS} words", lambda caption, length: length < SHORT_WORDS),
    ("with letters that are not Latin", lambda caption, length: _has_foreign(caption)),
    ("with what looks like bits of code", lambda caption, length: _CODE.search(caption)),
  ):
    hits = [
      caption
      for (caption, _), length in zip(captions, lengths, strict=True)
      if test(caption, length)
    ]
    if hits:
      report.note(
        f"{len(hits)} captions {what}",
        first_items([repr(caption[:70]) for caption in hits], min(show, 2)),
      )


def _has_foreign(caption: str) -> bool:
  return not caption.isascii() and any(map(_is_foreign, caption))


@functools.cache
def _is_foreign(character: str) -> bool:
  return character.isalpha() and not unicodedata.name(character, "").startswith("LATIN")
