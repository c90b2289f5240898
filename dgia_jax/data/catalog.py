"""What each public dataset looks like on disk, and its published sizes: data, no code.

One builder and one checker serve every dataset, because datasets differ only in the facts below:
the name of the annotation file, the first id, the sizes. Ids are kept as the files have them (some
start at 1, some at 0), because only their equality is ever used.
"""

import dataclasses

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclasses.dataclass(frozen=True)
class Counts:
  """Sizes of one split."""

  people: int
  images: int
  captions: int


@dataclasses.dataclass(frozen=True)
class Release:
  """The published sizes of each split. The key "all" stands for the whole dataset."""

  name: str
  splits: dict[str, Counts]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How to find a dataset's files, and what they should contain.

  Attributes:
    title: the name its authors gave it; also the folder its archive unpacks to.
    annotation_names: accepted file names, the usual one first; empty: any name, if it is the only
      JSON file.
    id_base: the smallest id in the files, None if any is accepted.
    releases: known sizes; the first is the one that papers report on.
    known_facts: facts and faults of the published data, for the report. No fault is corrected.
  """

  title: str
  annotation_names: tuple[str, ...] = ()
  id_base: int | None = None
  releases: tuple[Release, ...] = ()
  known_facts: tuple[str, ...] = ()


_CUHK_HELD_OUT = {"val": Counts(1_000, 3_078, 6_158), "test": Counts(1_000, 3_074, 6_156)}
_SHARED_SOURCE = (
  "RSTPReid and ICFG-PEDES are drawn from one source dataset: results across the two may share "
  "people"
)

LAYOUTS = {
  "cuhk_pedes": Layout(
    title="CUHK-PEDES",
    annotation_names=("reid_raw.json", "caption_all.json", "captions.json"),
    id_base=1,
    releases=(
      Release("published", {"train": Counts(11_003, 34_054, 68_108), **_CUHK_HELD_OUT}),
      Release(
        "published, as counted elsewhere",
        {"train": Counts(11_003, 34_054, 68_126), **_CUHK_HELD_OUT},
      ),
    ),
    known_facts=("a few images have more than two captions, and a few people have one image",),
  ),
  "icfg_pedes": Layout(
    title="ICFG-PEDES",
    annotation_names=("ICFG-PEDES.json", "ICFG_PEDES.json"),
    id_base=0,
    releases=(
      Release(
        "published", {"train": Counts(3_102, 34_674, 34_674), "test": Counts(1_000, 19_848, 19_848)}
      ),
    ),
    known_facts=(
      "imgs/train and imgs/test are not the split: the JSON has the split",
      _SHARED_SOURCE,
    ),
  ),
  "rstp_reid": Layout(
    title="RSTPReid",
    annotation_names=("data_captions.json",),
    id_base=0,
    releases=(
      Release(
        "published",
        {
          "train": Counts(3_701, 18_505, 37_010),
          "val": Counts(200, 1_000, 2_000),
          "test": Counts(200, 1_000, 2_000),
        },
      ),
      Release(
        "early release",
        {
          "train": Counts(3_901, 19_505, 39_010),
          "val": Counts(100, 500, 1_000),
          "test": Counts(100, 500, 1_000),
        },
      ),
    ),
    known_facts=(
      "one caption was copied to several of the first people, and some captions hold "
      "stray characters or fragments of code: they are kept",
      _SHARED_SOURCE,
    ),
  ),
  "ufine6926": Layout(
    title="UFine6926",
    id_base=1,
    releases=(Release("published", {"all": Counts(6_926, 26_206, 52_412)}),),
    known_facts=("captions have about 81 words: most are cut to 77 tokens",),
  ),
  "custom": Layout(title="custom"),
}
