"""Writes small fake datasets in the exact layouts of the public ones."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

Entry = dict[str, Any]


def write_image(
  path: pathlib.Path, seed: int = 0, size: tuple[int, int] = (40, 20), mode: str = "RGB"
) -> None:
  """Writes an image of (height, width) pixels, smooth so that JPEG keeps its colours."""
  path.parent.mkdir(parents=True, exist_ok=True)
  colors = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
  image = Image.fromarray(colors).resize((size[1], size[0]), Image.Resampling.BILINEAR)
  image.convert(mode).save(path)


def write_json(path: pathlib.Path, entries: Sequence[Entry]) -> None:
  """Writes annotations, and the folder they are in."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(entries), encoding="utf-8")


def caption(person: int, n: int = 0) -> str:
  """The n-th caption of a person."""
  colors = ("red", "green", "blue", "white", "black", "grey", "pink")
  return f"person {person} wears a {colors[person % 7]} coat and {colors[(person + n) % 7]} shoes"


def _write(
  folder: pathlib.Path, name: str, field: str, rows: Sequence[tuple[str, int, int, str]]
) -> list[Entry]:
  """Writes a dataset of rows (path, person, number of captions, split) and returns its entries."""
  entries = []
  for i, (path, person, captions, split) in enumerate(rows):
    write_image(folder / "imgs" / path, seed=i)
    texts = [caption(person, i + n) for n in range(captions)]
    entries.append({"id": person, field: path, "captions": texts, "split": split})
  write_json(folder / name, entries)
  return entries


def cuhk_pedes(folder: pathlib.Path) -> list[Entry]:
  """Five train people, one val and one test person, ids from 1, two captions per image."""
  folders = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")
  splits = ["train"] * 5 + ["val", "test"]
  rows = [
    (f"{folders[p]}/{p + 1}_{n}.jpg", p + 1, 2, splits[p]) for p in range(7) for n in range(2)
  ]
  return _write(folder, "reid_raw.json", "file_path", rows)


def icfg_pedes(folder: pathlib.Path) -> list[Entry]:
  """Six train and two test people, ids from 0, one caption per image, no val split."""
  rows = [
    (f"{'train' if p % 2 else 'test'}/{p:04d}/{p:04d}_{n}.jpg", p, 1, "train" if p < 6 else "test")
    for p in range(8) for n in range(2)
  ]  # fmt: skip
  return _write(folder, "ICFG_PEDES.json", "file_path", rows)


def rstp_reid(folder: pathlib.Path) -> list[Entry]:
  """Three train people, one val and one test person, five images each, two captions per image."""
  splits = ["train"] * 3 + ["val", "test"]
  rows = [(f"{p:04d}_c{n}_0022.jpg", p, 2, splits[p]) for p in range(5) for n in range(5)]
  return _write(folder, "data_captions.json", "img_path", rows)


def custom(folder: pathlib.Path) -> list[Entry]:
  """Two train and two test people, images in nested folders; annotations.json beside images/."""
  entries = []
  for p in range(4):
    path = f"street {p}/bild_ü{p}.png"
    write_image(folder / "images" / path, seed=p)
    entries.append({"id": f"p{p}", "img_path": path, "captions": [caption(p)],
                    "split": "train" if p < 2 else "test"})  # fmt: skip
  write_json(folder / "annotations.json", entries)
  return entries
