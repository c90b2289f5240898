"""A trained dual encoder put to use: images and words in, features and rankings out.

from dgia_jax import Retriever
retriever = Retriever.from_run("runs/demo")
gallery = retriever.embed_images(paths)
scores, rows = retriever.rank(retriever.embed_texts(["a woman in a red coat"]), gallery, top=10)
"""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dgia_jax import sharding, user_files
from dgia_jax.data import images as images_lib
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.method import losses, memory_bank
from dgia_jax.models import backend, dual_encoder, pretrained
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.training import checkpoint
from dgia_jax.training import workdir as workdir_lib


class Retriever:
  """Both towers of a dual encoder with their tokenizer, laid out over the devices of one process.

  Attributes:
    image_size: (height, width) in pixels that every image is squeezed to.
    resize: the filter that does it, a key of `data.images.RESIZE_FILTERS`.
    feature_width: D.
    mesh: the mesh; images and words are embedded data-parallel, galleries are split by rows.
  """

  def __init__(self, graphdef, params, tokenizer, image_size, resize, *, mesh=None, batch_size=64):
    """Use `from_run`, `from_hugging_face` or `open`.

    Args:
      graphdef: of the `dual_encoder.DualEncoder`.
      params: nested dict of arrays.
      tokenizer: data.tokenizer.Tokenizer.
      image_size: (height, width) in pixels.
      resize: the filter that images were resized with in training.
      mesh: None: all devices of this process as data.
      batch_size: images or texts embedded at once, rounded up to a multiple of the devices.
    """
    self.mesh = mesh or sharding.create_mesh(devices=jax.local_devices())
    self.image_size, self.resize = tuple(image_size), resize
    self._tokenizer = tokenizer
    self._batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
    self._params = jax.device_put(params, sharding.replicated(self.mesh))
    self.feature_width = self._params["image"]["projection"].shape[-1]

    def compiled(encode):
      unit = lambda params, batch: losses.normalize(encode(nnx.merge(graphdef, params), batch))
      layouts = (sharding.replicated(self.mesh), sharding.batch(self.mesh))
      return jax.jit(unit, in_shardings=layouts, out_shardings=sharding.replicated(self.mesh))

    self._embed_images = compiled(
      lambda model, images: model.encode_image(pixels_lib.normalize_pixels(images))
    )
    self._embed_texts = compiled(lambda model, tokens: model.encode_text(tokens))

  @classmethod
  def from_run(cls, folder, choice="best", **options):
    """The model of a run.

    Args:
      folder: the run's folder, its --workdir.
      choice: "best" or "last" checkpoint.
      **options: `mesh` and `batch_size` of the constructor.

    Raises:
      UserError: the folder holds no run, or no complete checkpoint.
    """
    config = workdir_lib.read_config(folder)
    settings, image_size = config["tokenizer"], tuple(config["dataset"]["image_size"])
    if settings["name"]:
      words = tokenizer_lib.pretrained_tokenizer(settings["name"], settings["context_length"])
    else:
      words = tokenizer_lib.load_tokenizer(pathlib.Path(folder) / workdir_lib.TOKENIZER)
    _, params = checkpoint.restore_params(folder, choice)
    size = dual_encoder.SIZES[config["model"]["name"]]
    graphdef, _ = _abstract_model(
      size, image_size, words.context_length, words.vocab_size, _dtype(config["model"]["dtype"])
    )
    # Runs that do not name the filter are older than the setting.
    resize = config["dataset"].get("resize", "bicubic")
    return cls(graphdef, params, words, image_size, resize, **options)

  @classmethod
  def from_hugging_face(cls, folder, **options):
    """The model of a Hugging Face CLIP folder, as `dgia_jax.convert` or transformers write it.

    Args:
      folder: holds config.json, model.safetensors and the tokenizer's files.
      **options: `mesh` and `batch_size` of the constructor.

    Raises:
      UserError: something is missing, or it is not CLIP's.
    """
    folder = pathlib.Path(folder)
    clip = pretrained.read_config(folder)
    graphdef, template = _abstract_model(
      clip.size, clip.image_size, clip.context_length, clip.vocab_size, _dtype("bfloat16")
    )
    found = pretrained.load_pretrained(str(folder), template, image_size=clip.image_size)
    words = tokenizer_lib.folder_tokenizer(folder, clip.context_length)
    resize = pretrained.read_resize(folder)
    return cls(graphdef, found.params, words, clip.image_size, resize, **options)

  @classmethod
  def open(cls, folder, choice="best", **options):
    """The model of a run's folder, or of a Hugging Face folder, which has no `choice`."""
    path = pathlib.Path(folder) / workdir_lib.CONFIG
    try:
      is_clip = "vision_config" in user_files.read_json(path, "model")
    except UserError:
      is_clip = False  # `from_run` says what is wrong
    if is_clip:
      return cls.from_hugging_face(folder, **options)
    return cls.from_run(folder, choice, **options)

  def digest(self):
    """SHA-256 over the parameters, sorted by name: which model made an index."""
    total = hashlib.sha256()
    for name, value in sorted(pretrained.flatten(self._params).items()):
      total.update(f"{name} {value.shape}".encode())
      total.update(np.ascontiguousarray(jax.device_get(value)).tobytes())
    return total.hexdigest()

  def read_image(self, path):
    """The pixels of an image file as the model sees them, uint8 (H, W, 3).

    Raises:
      images.UnreadableImageError: the file cannot be decoded.
    """
    return images_lib.read_resized(path, self.image_size, self.resize)

  def embed_images(self, images):
    """Features of images.

    Args:
      images: sequence of file paths, or of uint8 arrays (H, W, 3) at `image_size`.

    Returns:
      (M, D) float32, rows of norm 1.

    Raises:
      UserError: a file cannot be decoded, or an array has another shape.
    """

    def pixels(image):
      if not isinstance(image, np.ndarray):
        try:
          return self.read_image(image)
        except images_lib.UnreadableImageError as error:
          raise UserError(f"cannot read image {error}") from error
      if image.shape != (*self.image_size, 3) or image.dtype != np.uint8:
        raise UserError(
          f"an image array is {image.dtype} {image.shape}: give uint8 {(*self.image_size, 3)}"
        )
      return image

    return self._in_batches(self._embed_images, images_lib.ordered_map(pixels, images, 0))

  def embed_texts(self, texts):
    """Features of descriptions: a sequence of N strings -> (N, D) float32, rows of norm 1."""
    return self._in_batches(self._embed_texts, iter(self._tokenizer.encode(list(texts))))

  def rank(self, queries_QxD, gallery_MxD, top=10):
    """The best of a gallery for every query: the exact search of the memory bank.

    Args:
      queries_QxD: (Q, D) features of texts or images.
      gallery_MxD: (M, D) features, or a Gallery that already lies on the devices.
      top: K, at most M are found.

    Returns:
      (Q, K) float32 cosines, best first, and (Q, K) int32 gallery rows; ties to the lowest row.
    """
    gallery = gallery_MxD if isinstance(gallery_MxD, Gallery) else Gallery(gallery_MxD, self.mesh)
    return gallery.search(queries_QxD, top)

  def _in_batches(self, embed, rows):
    """Applies `embed` to batches of one static shape, the last one filled up."""
    found, batch = [np.zeros((0, self.feature_width), np.float32)], []

    def flush():
      size = len(batch)
      filled = np.stack(batch + [batch[-1]] * (self._batch_size - size))
      found.append(np.asarray(embed(self._params, filled))[:size])
      batch.clear()

    for row in rows:
      batch.append(row)
      if len(batch) == self._batch_size:
        flush()
    if batch:
      flush()
    return np.concatenate(found)


class Gallery:
  """Features to search in, split by rows over the devices of a mesh.

  Args:
    features_MxD: (M, D) float32: an array, or anything of that `shape` that gives the array of a
      slice of its rows, such as the files of an index. A row of zeros is never found.
    mesh: the mesh.
  """

  def __init__(self, features_MxD, mesh):
    self.size, width = features_MxD.shape
    layout = sharding.bank_rows(mesh)
    padded = max(-(-self.size // mesh.size), 1) * mesh.size

    def rows_of_device(index):
      start, stop, _ = index[0].indices(padded)
      found = np.asarray(features_MxD[min(start, self.size) : min(stop, self.size)], np.float32)
      return np.pad(found, ((0, stop - start - len(found)), (0, 0)))

    self._features = jax.make_array_from_callback((padded, width), layout, rows_of_device)
    self._inverse_norm = jax.jit(losses.inverse_norm, out_shardings=layout)(self._features)
    self._search = jax.jit(
      lambda queries, rows, count: memory_bank.nearest((queries,), (rows,), count, mesh=mesh),
      static_argnums=2,
    )

  def search(self, queries_QxD, top):
    """As `Retriever.rank`."""
    queries = jnp.asarray(queries_QxD, jnp.float32)
    count = min(top, self.size)
    scores, rows = self._search(queries, (self._features, self._inverse_norm), count)
    return np.asarray(scores), np.asarray(rows)


def _dtype(name):
  """Of the encoders' arithmetic: bfloat16 is slow on a CPU."""
  return jnp.float32 if jax.default_backend() == "cpu" else jnp.dtype(name)


def _abstract_model(size, image_size, context_length, vocab_size, dtype):
  """The graph of a model, and its parameters as shapes."""

  def make():
    return dual_encoder.DualEncoder(
      size,
      image_size=image_size,
      context_length=context_length,
      vocab_size=vocab_size,
      dtype=dtype,
      backend=backend.choose(jax.local_devices()[0], dtype),
      rngs=nnx.Rngs(0),
    )

  model = nnx.eval_shape(make)
  return nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
