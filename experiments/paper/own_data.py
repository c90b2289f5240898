"""Draws people into a folder of image files and a JSON list, as a dataset of one's own would come.

Command: python -m experiments.paper.own_data --out data/own
Writes:  data/own/annotations.json and data/own/images/SPLIT/*.png

A second test bed beside synth_pedes, for `--dataset custom`: other people, two captions an image,
of which each says less, three images a person, harder cameras.
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


def write(settings, folder):
  """Draws every split of the settings into a folder.

  Args:
    settings: of synth_pedes.
    folder: made when absent.

  Returns:
    Number of images written.
  """
  folder, entries = pathlib.Path(folder), []
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


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  out = parser.parse_args().out
  print(f"{write(SETTINGS, out):,} images in {out}")


if __name__ == "__main__":
  main()
