"""Draws a second synthetic dataset in the format of a user's own data: images and a JSON list.

Command: python -m experiments.paper.own_data --out data/own
Writes:  data/own/annotations.json and data/own/images/SPLIT/*.png

For experiments with `--dataset custom`. Compared with synth_pedes it has other people, three images
per person, two captions per image that each mention fewer attributes, and harder cameras.
"""

import argparse
import json
import pathlib

from PIL import Image

from dgia_jax.data.synth_pedes import Settings
from dgia_jax.data.synth_pedes.generate import generate

SETTINGS = Settings(
  seed=1,
  train_people=1500,
  images_per_person=3,
  captions_per_image=2,
  attributes_per_caption=(3, 6),
  camera=0.3,
  height=64,
  width=64,
)


def write(settings: Settings, folder: pathlib.Path) -> int:
  """Draws every split into a folder, which is created if missing; returns the number of images."""
  entries = []
  for split in settings.splits:
    for record in generate(settings, split):
      path = folder / "images" / record["image_path"]
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(record["image"]).save(path)
      entries.append(
        {
          "id": int(record["person_id"]),
          "img_path": record["image_path"],
          "captions": list(record["captions"]),
          "split": split,
        }
      )
  (folder / "annotations.json").write_text(json.dumps(entries, indent=1) + "\n")
  return len(entries)


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  out = parser.parse_args().out
  print(f"{write(SETTINGS, out):,} images in {out}")


if __name__ == "__main__":
  main()
