"""Draws a second synthetic dataset in the format of a user's own data: images and a JSON list.

Command: python -m experiments.paper.own_data --out data/own
Writes:  data/own/annotations.json and data/own/images/SPLIT/*.png

For experiments with `--dataset custom`. Compared with synth_pedes it has other people, three images
per person, two captions per image that each mention fewer attributes, and harder cameras. With
--unfamiliar, `mini` recognises nothing: negatives, upside down, and all words spelled backwards.
"""

import argparse
import json
import pathlib
import re

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


def write(settings: Settings, folder: pathlib.Path, unfamiliar: bool = False) -> int:
  """Draws every split into a folder, which is created if missing; returns the number of images.

  Args:
    settings: of the people, their images and captions.
    folder: see above.
    unfamiliar: whether to make images and words that `mini` does not know.
  """
  entries = []
  for split in settings.splits:
    for record in generate(settings, split):
      path = folder / "images" / record["image_path"]
      path.parent.mkdir(parents=True, exist_ok=True)
      image = 255 - record["image"][::-1] if unfamiliar else record["image"]
      Image.fromarray(image).save(path)
      entries.append(
        {
          "id": int(record["person_id"]),
          "img_path": record["image_path"],
          "captions": [_backwards(c) if unfamiliar else c for c in record["captions"]],
          "split": split,
        }
      )
  (folder / "annotations.json").write_text(json.dumps(entries, indent=1) + "\n")
  return len(entries)


def _backwards(caption: str) -> str:
  """The caption with every word spelled backwards."""
  return re.sub("[A-Za-z]+", lambda word: word.group()[::-1], caption)


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--unfamiliar", action="store_true", help="what `mini` does not know")
  arguments = parser.parse_args()
  count = write(SETTINGS, arguments.out, arguments.unfamiliar)
  print(f"{count:,} images in {arguments.out}")


if __name__ == "__main__":
  main()
