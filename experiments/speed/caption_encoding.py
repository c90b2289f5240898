"""Times encoding the captions of a test split, sorted and cut as in evaluation and at full length.

Command: python -m experiments.speed.caption_encoding --captions 6156 --model vit_b_16
Prints:  one JSON object: computed tokens per caption, seconds and processor seconds of both ways,
         their ratio, seconds of the first call, which compiles, and the largest difference of a
         feature of norm 1

Both ways take turns. Where other programs use the processor, too, read the processor seconds.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from dgia_jax import sharding
from dgia_jax.method import losses
from dgia_jax.models import backend, caption_batches, dual_encoder, embedder
from experiments.speed.benchmark import workload

CUT, FULL = "sorted and cut", "full length"
_VOCAB_SIZE, _IMAGE_SIZE = 49_408, (384, 128)


def measure(
  model: str,
  num_captions: int,
  batch_size: int,
  repeats: int,
  context_length: int = 77,
  vocab_size: int = _VOCAB_SIZE,
) -> dict[str, Any]:
  """Encodes made-up captions of realistic lengths with initial weights, in both ways.

  Args:
    model: a key of `dual_encoder.SIZES`, not of SigLIP.
    num_captions: encoded in each repetition.
    batch_size: captions at once.
    repeats: of which the medians are reported.
    context_length, vocab_size: of the captions.
  """
  dtype = np.float32 if jax.default_backend() == "cpu" else jax.numpy.bfloat16
  graphdef, params = nnx.split(
    dual_encoder.create(
      model,
      image_size=_IMAGE_SIZE,
      context_length=context_length,
      vocab_size=vocab_size,
      dtype=dtype,
      backend=backend.choose(jax.local_devices()[0], dtype),
      rngs=nnx.Rngs(0),
    ),
    nnx.Param,
  )
  mesh = sharding.create_mesh(devices=jax.local_devices()[:1])
  params = jax.device_put(nnx.to_pure_dict(params), sharding.replicated(mesh))
  embed = embedder.Embedder(graphdef, mesh, sharding.replicated(mesh)).embed_texts
  encode = jax.jit(lambda params, tokens: nnx.merge(graphdef, params).encode_text(tokens))
  tokens_NxL = workload.made_up_captions(num_captions, context_length, vocab_size)

  def full_length() -> np.ndarray:
    batches = caption_batches.batches(tokens_NxL, batch_size, by_length=False)
    features = [np.asarray(encode(params, batch.tokens_BxT)) for batch in batches]
    return np.concatenate(features)[:num_captions]

  ways = {CUT: lambda: embed(params, tokens_NxL, batch_size), FULL: full_length}
  first, features, seconds = {}, {}, {way: [] for way in ways}
  for way, run in ways.items():
    (first[way], _), features[way] = _timed(run)
  for _ in range(repeats):
    for way, run in ways.items():
      seconds[way].append(_timed(run)[0])
  clock, processor = (
    {
      way: round(float(np.median([pair[kind] for pair in pairs])), 3)
      for way, pairs in seconds.items()
    }
    for kind in (0, 1)
  )
  cut, full = (np.asarray(losses.normalize(features[way])) for way in (CUT, FULL))
  computed = sum(b.tokens_BxT.size for b in caption_batches.batches(tokens_NxL, batch_size))
  return {
    "model": model,
    "captions": num_captions,
    "tokens": {CUT: round(computed / num_captions, 1), FULL: context_length},
    "seconds": clock,
    "processor_seconds": processor,
    "ratio": round(clock[FULL] / clock[CUT], 2),
    "processor_ratio": round(processor[FULL] / processor[CUT], 2),
    "first_seconds": {way: round(value, 1) for way, value in first.items()},
    "largest_difference": float(np.abs(cut - full).max()),
  }


def _timed(run: Callable[[], np.ndarray]) -> tuple[tuple[float, float], np.ndarray]:
  """Seconds by the clock and of the processor, and the result."""
  start = time.perf_counter(), time.process_time()
  result = run()
  return (time.perf_counter() - start[0], time.process_time() - start[1]), result


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="vit_b_16")
  parser.add_argument("--captions", type=int, default=6156, help="default: CUHK-PEDES' test split")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=3)
  options = parser.parse_args()
  print(json.dumps(measure(options.model, options.captions, options.batch_size, options.repeats)))


if __name__ == "__main__":
  main()
