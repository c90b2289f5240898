"""Compares two forms of stored datasets: the image files, or images resized to the model's size.

Command: python -m experiments.speed.stored_images
Prints:  kilobytes per image and training pairs per second and core, by the size of the photographs

The photographs are synthetic: synthetic people with 1/f texture, as JPEG files of quality 90. Every
form is built and read like any dataset, with bilinear resizing to 384 x 128. Speed is measured per
second of CPU time, so that other programs on the machine hardly affect it.
"""

import argparse
import io
import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

from dgia_jax.data import datasets, images, pairs
from dgia_jax.data.synth_pedes import Settings, cameras, drawing, people

IMAGE_SIZE = (384, 128)
RESIZE = "bilinear"
PHOTO_SIZES = ((128, 64), (256, 100), (420, 160), (800, 300), (1600, 600))
TEXTURE = 18.0  # standard deviation of the grey levels
FORMS = {
  "the file as it is": None,
  "PNG at model size": dict(format="PNG"),
  "lossless WebP at model size": dict(format="WEBP", lossless=True),
}


def photograph(number: int, size: tuple[int, int]) -> Image.Image:
  """A drawn person of (height, width) pixels with the texture of natural images."""
  height, width = size
  shrink = -(-height // 800)
  settings = Settings().replace(height=height // shrink, width=width // shrink)
  person = people.sample_person(0, number)
  view = cameras.sample_views(settings, number)[0]
  drawn, _ = drawing.draw(person, view, settings.height, settings.width)
  picture = np.asarray(Image.fromarray(drawn).resize((width, height)), np.float32)
  spectrum = np.fft.rfft2(np.random.default_rng(number).standard_normal((height, width)))
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
  texture = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / height), (height, width))
  picture = picture + (TEXTURE / texture.std() * texture)[..., None]
  return Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
  """The content of an image file."""
  buffer = io.BytesIO()
  image.save(buffer, **options)
  return buffer.getvalue()


def build(folder: pathlib.Path, contents: list[bytes]) -> pairs.PairTable:
  """Builds a dataset of these image files, and returns its training pairs."""
  (folder / "images").mkdir(parents=True)
  entries = []
  for number, content in enumerate(contents):
    (folder / "images" / f"{number}.bin").write_bytes(content)
    entries.append({"id": number, "img_path": f"{number}.bin", "caption": "a", "split": "train"})
  (folder / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")
  builder = datasets.load_builder("custom", source=str(folder), data_dir=str(folder / "built"))
  return pairs.load_pairs(builder, "train", IMAGE_SIZE, RESIZE)


def pairs_per_second(table: pairs.PairTable, repeats: int) -> float:
  """Images read, decoded and resized per second of CPU time: the best of some repeats."""
  best = 0.0
  for _ in range(repeats):
    start = time.process_time()
    for image in range(table.num_images):
      table.images[image]
    best = max(best, table.num_images / (time.process_time() - start))
  return best


def measure(size: tuple[int, int], count: int, repeats: int) -> dict[str, tuple[float, float]]:
  """{form: (kilobytes per image, pairs per second)} for photographs of one size."""
  files = [encoded(photograph(n, size), format="JPEG", quality=90) for n in range(count)]
  pixels = [images.resized(images.decode(file, "-"), IMAGE_SIZE, RESIZE) for file in files]
  results = {}
  for form, options in FORMS.items():
    contents = files
    if options:
      contents = [encoded(Image.fromarray(image), **options) for image in pixels]
    with tempfile.TemporaryDirectory() as folder:
      table = build(pathlib.Path(folder) / "data", contents)
      for image, expected in enumerate(pixels):
        np.testing.assert_array_equal(table.images[image], expected)
      kilobytes = sum(map(len, contents)) / len(contents) / 1000
      results[form] = (kilobytes, pairs_per_second(table, repeats))
  return results


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=int, default=60, help="photographs of each size")
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()
  print("| photographs | " + " | ".join(FORMS) + " |")
  print("|---|" + "---|" * len(FORMS))
  for size in PHOTO_SIZES:
    results = measure(size, options.images, options.repeats)
    cells = (f"{kilobytes:.0f} KB, {speed:,.0f}/s" for kilobytes, speed in results.values())
    print(f"| {size[0]} x {size[1]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
  main()
