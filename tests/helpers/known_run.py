"""The folder of a run whose checkpoints hold known weights, without any training; and images."""

import contextlib

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


def make_model(words, seed):
  return dual_encoder.create(
    "tiny",
    image_size=IMAGE_SIZE,
    context_length=words.context_length,
    vocab_size=words.vocab_size,
    rngs=nnx.Rngs(seed),
  )


def write_run(folder):
  """A run's folder with two checkpoints, of which the first is the best; weights of seed = step."""
  settings = config.base()
  settings.dataset.image_size = IMAGE_SIZE
  settings.model.name = "tiny"
  settings.tokenizer.name = ""
  settings.loss.temperature = 0.05
  workdir_lib.claim(folder, settings)
  words = tokenizer_lib.train_tokenizer(CAPTIONS, context_length=16, vocab_size=300)
  words.save(folder / workdir_lib.TOKENIZER)
  with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
    for step, score in ((1, 5.0), (2, 3.0)):
      state = train_state.TrainState(
        step=jnp.asarray(step),
        params=nnx.to_pure_dict(nnx.state(make_model(words, step), nnx.Param)),
        opt_state=(),
        bank=memory_bank.create(8, 64),
      )
      checkpoints.save(state, {"data_position": step}, score)
    checkpoints.wait()
  return folder


def draw_image(path, rng):
  """A small image of noise, its folder made when absent."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(rng.integers(0, 255, (20, 10, 3), np.uint8)).save(path)


def write_images(folder, rng):
  """Ten images in two folders, a damaged one, and a file that is none."""
  for number in range(10):
    draw_image(folder / ("a" if number % 2 else "b/c") / f"{number}.png", rng)
  (folder / "notes.txt").write_text("no image")
  (folder / "a" / "broken.jpg").write_text("no image")
  return folder
