"""Both towers as programs that run without this package, as StableHLO or as ONNX.

A program holds the weights as float32 constants, normalises pixels itself, takes batches of any
size and gives features of norm 1. A StableHLO program is one file for every platform in
`PLATFORMS`: `jax.export.deserialize(bytearray(content)).call(inputs)`. encoders.json describes
inputs and outputs.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx

from dgia_jax import files
from dgia_jax.errors import UserError
from dgia_jax.method import losses
from dgia_jax.models import dual_encoder

PLATFORMS = ("cpu", "cuda", "tpu")
DESCRIPTION = "encoders.json"
_MAX_BYTES = 2**31 - 2**24  # FlatBuffers and Protocol Buffers end at 2 GiB; the rest is the program

Encode = Callable[[jax.Array], jax.Array]


def file_names(form: str) -> tuple[str, str, str]:
  """The files of a format in `FORMATS`: image tower, text tower, description."""
  return f"image_encoder.{form}", f"text_encoder.{form}", DESCRIPTION


def write_folder(
  folder: pathlib.Path,
  form: str,
  params: Mapping[str, Any],
  size: dual_encoder.Size,
  *,
  image_size: tuple[int, int],
  resize: str,
  temperature: float,
  tokenizer: str | None,
) -> None:
  """Writes the programs of both towers and their description.

  Args:
    folder: created if absent.
    form: a key of `FORMATS`.
    params: nested dict of NumPy arrays.
    size: of the model.
    image_size: (height, width) in pixels of the model's images.
    resize: the filter that images were resized with in training, for the description.
    temperature: tau, the divisor of the cosines in training, for the description.
    tokenizer: the file of its vocabulary in the folder; None if that could not be found.

  Raises:
    UserError: a tower is too large for one file, or a package is missing.
  """
  for name in ("image", "text"):
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params[name]))
    if num_bytes > _MAX_BYTES:
      raise UserError(
        f"--format={form}: the {name} tower has {num_bytes / 2**30:.1f} GiB of weights, and one"
        " file holds less than 2; use --format=transformers"
      )
  context_length = params["text"]["position_embedding"].shape[0]
  encode_image, encode_text = encoders(params, size, image_size)
  (batch,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.uint8)
  tokens = jax.ShapeDtypeStruct((batch, context_length), jnp.int32)
  image_file, text_file, _ = file_names(form)
  folder.mkdir(parents=True, exist_ok=True)
  files.write_bytes(folder / image_file, FORMATS[form](encode_image, images, "images"))
  files.write_bytes(folder / text_file, FORMATS[form](encode_text, tokens, "tokens"))

  features = {"shape": ["b", params["text"]["projection"].shape[1]], "dtype": "float32", "norm": 1}
  pixels = size.family.pixels
  description = {
    "image_encoder": {
      "file": image_file,
      "resize_to": {"height": image_size[0], "width": image_size[1], "filter": resize},
      "input": {"shape": ["b", *image_size, 3], "dtype": "uint8", "channels": "RGB"},
      "normalised_inside": {"scale": 1 / 255, "mean": pixels.mean, "std": pixels.std},
      "output": features,
    },
    "text_encoder": {
      "file": text_file,
      "tokenizer": tokenizer,
      "input": {"shape": ["b", context_length], "dtype": "int32"},
      "output": features,
    },
    "temperature": temperature,
    "jax": jax.__version__,
  }
  if form == "stablehlo":
    description["platforms"] = PLATFORMS
  files.write_json(folder / DESCRIPTION, description)


def encoders(
  params: Mapping[str, Any], size: dual_encoder.Size, image_size: tuple[int, int]
) -> tuple[Encode, Encode]:
  """Functions from uint8 RGB images, and from token ids, to features of norm 1 in float32."""

  def create() -> dual_encoder.DualEncoder:
    # Its default backend uses no operation that only one kind of device has.
    return dual_encoder.DualEncoder(
      size,
      image_size=image_size,
      context_length=params["text"]["position_embedding"].shape[0],
      vocab_size=params["text"]["token_embedding"].shape[0],
      rngs=nnx.Rngs(0),
    )

  graphdef = nnx.graphdef(nnx.eval_shape(create))
  arrays = jax.tree.map(jnp.asarray, params)  # traced tokens cannot index NumPy arrays

  def encode_image(images: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, arrays)
    return losses.normalize(model.encode_image(model.normalize_pixels(images)))

  def encode_text(tokens: jax.Array) -> jax.Array:
    return losses.normalize(nnx.merge(graphdef, arrays).encode_text(tokens))

  return encode_image, encode_text


def _stablehlo(encode: Encode, inputs: jax.ShapeDtypeStruct, name: str) -> bytes:
  del name  # of the input, which StableHLO does not keep
  try:
    import flatbuffers  # noqa: F401  (jax imports it when it serialises)
  except ImportError as error:
    raise UserError(
      "--format=stablehlo needs flatbuffers: pip install 'dgia_jax[stablehlo]'"
    ) from error
  return bytes(jax.export.export(jax.jit(encode), platforms=PLATFORMS)(inputs).serialize())


def _onnx(encode: Encode, inputs: jax.ShapeDtypeStruct, name: str) -> bytes:
  try:
    import jax2onnx
  except ImportError as error:
    raise UserError("--format=onnx needs jax2onnx: pip install 'dgia_jax[onnx]'") from error
  model: Any = jax2onnx.to_onnx(encode, [inputs], input_names=[name], output_names=["features"])
  return model.SerializeToString()


FORMATS: dict[str, Callable[[Encode, jax.ShapeDtypeStruct, str], bytes]] = {
  "stablehlo": _stablehlo,
  "onnx": _onnx,
}
