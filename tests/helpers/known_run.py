"""Creates the working directory of a run with known weights, without training, and images."""

import contextlib
import json

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from dgia_jax import config
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.method import memory_bank, train_state
from dgia_jax.models import dual_encoder
from dgia_jax.training import checkpoint
from dgia_jax.training import workdir as workdir_lib

IMAGE_SIZE = (64, 32)
CAPTIONS = ["a man with a red coat", "A woman wears   BLUE shoes, a bag & a hat", "red, red!"]


def make_model(tokenizer, seed, name="tiny"):
  return dual_encoder.create(
    name,
    image_size=IMAGE_SIZE,
    context_length=tokenizer.context_length,
    vocab_size=tokenizer.vocab_size,
    rngs=nnx.Rngs(seed),
  )


def write_run(folder, model="tiny", vocabulary=""):
  """Writes checkpoints 1 (the best) and 2, with the weights that the step as seed gives.

  `vocabulary` is the folder of a SigLIP tokenizer, if `model` is the name of a SigLIP.
  """
  run_config = config.base()
  run_config.dataset.image_size = IMAGE_SIZE
  run_config.model.name = model
  run_config.tokenizer.name = str(vocabulary)
  if vocabulary:
    run_config.tokenizer.context_length = 16
  run_config.loss.temperature = 0.05
  workdir_lib.claim(folder, run_config)
  if vocabulary:
    tokenizer = tokenizer_lib.pretrained_tokenizer(str(vocabulary), 16, is_siglip=True)
  else:
    tokenizer = tokenizer_lib.train_tokenizer(CAPTIONS, context_length=16, vocab_size=300)
    tokenizer.save(folder / workdir_lib.TOKENIZER)
  with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
    for step, score in ((1, 5.0), (2, 3.0)):
      state = train_state.TrainState(
        step=jnp.asarray(step),
        params=nnx.to_pure_dict(nnx.state(make_model(tokenizer, step, model), nnx.Param)),
        opt_state=(),
        bank=memory_bank.create(8, 64),
      )
      checkpoints.save(state, {"data_position": step})
      checkpoints.add_score(step, {"data_position": step}, score)
  return folder


def draw_image(path, rng):
  """Writes a small image of noise, and creates its folder if needed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(rng.integers(0, 255, (20, 10, 3), np.uint8)).save(path)


def write_annotations(path, folder):
  """Writes annotations of the images of `write_images`: image N shows person N % 3."""
  entries = [
    {
      "img_path": image.relative_to(folder).as_posix(),
      "id": int(image.stem) % 3,
      "captions": [f"Person {image.stem} wears  red.", "someone"],
      "split": "test",
    }
    for image in sorted(folder.rglob("?.png"))
  ]
  path.write_text(json.dumps(entries))
  return path


def write_images(folder, rng):
  """Writes ten images into two folders, a damaged image, and a text file."""
  for number in range(10):
    draw_image(folder / ("a" if number % 2 else "b/c") / f"{number}.png", rng)
  (folder / "notes.txt").write_text("no image")
  (folder / "a" / "broken.jpg").write_text("no image")
  return folder
