"""A trained model in use: images and descriptions in, features and rankings out.

from dgia_jax import Retriever
retriever = Retriever.from_pretrained("runs/demo")
gallery = retriever.embed_images(paths)
scores, rows = retriever.rank(retriever.embed_texts("a woman in a red coat"), gallery, top=10)
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from dgia_jax import hub, sharding, user_files
from dgia_jax.data import images as images_lib
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.data.token_ids import TokenIds
from dgia_jax.errors import UserError
from dgia_jax.method import losses
from dgia_jax.models import backend, dual_encoder, embedder, pretrained
from dgia_jax.search import image_tensors
from dgia_jax.search.gallery import Gallery
from dgia_jax.training import array_digests
from dgia_jax.training import workdir as workdir_lib

# Files of a model on the hub: config and weights, then a tokenizer.
_HUB_FILES = [
  (*weights, *tokenizer)
  for weights in pretrained.HUB_FILES
  for tokenizer in tokenizer_lib.HUB_FILES
]

Image = str | os.PathLike | PIL.Image.Image | UInt8[np.ndarray, "_h _w 3"]


class Retriever:
  """Both towers of a dual encoder with their tokenizer, on the devices of one process.

  Attributes:
    image_size: (height, width) in pixels that every image is squeezed to.
    resize: the filter used for it, a key of `data.images.RESIZE_FILTERS`.
    feature_width: D.
    batch_size: images or texts embedded at once, unless a call says otherwise.
    mesh: the mesh; batches and galleries are split over it by rows.
  """

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    params: Mapping[str, Any],
    tokenizer: tokenizer_lib.Tokenizer | tokenizer_lib.SiglipTokenizer,
    image_size: tuple[int, int],
    resize: str,
    *,
    mesh: jax.sharding.Mesh | None = None,
    batch_size: int = 64,
  ):
    """Most callers want `from_pretrained`.

    Args:
      graphdef: the structure of the `dual_encoder.DualEncoder`.
      params: its parameters.
      tokenizer: the one the model was trained with.
      image_size: (height, width) in pixels.
      resize: the filter that images were resized with in training.
      mesh: None uses all devices of this process.
      batch_size: default number of images or texts embedded at once.

    Raises:
      UserError: the tokenizer is another model's.
    """
    _check_tokenizer(tokenizer, params["text"])
    self.mesh = mesh or sharding.local_mesh()
    self.image_size, self.resize = tuple(image_size), resize
    self._tokenizer = tokenizer
    self.batch_size = batch_size
    replicated = sharding.replicated(self.mesh)
    self._params = jax.device_put(params, replicated)
    self.feature_width = self._params["text"]["projection"].shape[-1]
    self._embedder = embedder.Embedder(graphdef, self.mesh, replicated, losses.normalize)

  @classmethod
  def from_pretrained(
    cls,
    source: str | os.PathLike,
    choice: str = "best",
    *,
    weights: str = "",
    setting: str = "model",
    **options: Any,
  ) -> "Retriever":
    """Opens a trained model.

    Args:
      source: "mini", the small model that comes with the package; the folder of a run; a folder
        with a CLIP or SigLIP model, as `dgia_jax.convert`, transformers or open_clip write it;
        either of them in a bucket, gs://BUCKET/FOLDER; or the name of such a model on the Hugging
        Face hub.
      choice: checkpoint of a run, "best" or "last".
      weights: of a run, "raw", "ema" for their average, or "" for those its scores are of.
      setting: the name of `source` in error messages.
      **options: `mesh` and `batch_size` of the constructor.

    Raises:
      UserError: no model can be opened from there.
    """
    path = pretrained.local_copy(source, setting)
    if not user_files.exists(path, setting):
      return cls.from_hugging_face(_hub_folder(str(source), setting), **options)
    if not path.is_dir():
      raise UserError(f"{setting}={source} is a file: give the folder of a run or of a model")
    try:
      config = user_files.read_json(path / workdir_lib.CONFIG, setting)
      is_published = "vision_config" in config
    except UserError:  # `from_run` reports the problem
      is_published = (path / pretrained.OPEN_CLIP_CONFIG).exists()
    if is_published:
      return cls.from_hugging_face(path, **options)
    return cls.from_run(path, choice, weights=weights, setting=setting, **options)

  open = from_pretrained  # its earlier name

  @classmethod
  def from_run(
    cls,
    folder: str | os.PathLike,
    choice: str = "best",
    *,
    weights: str = "",
    setting: str = "model",
    **options: Any,
  ) -> "Retriever":
    """Opens a checkpoint of a run, "best" or "last"; see `from_pretrained`.

    Raises:
      UserError: the folder holds no run, no complete checkpoint or no average of the weights, or
        its config or tokenizer is damaged.
    """
    # Imported here: Orbax is slow to import and only runs need it.
    from dgia_jax.training import run_weights

    folder = user_files.expanded(folder, setting)
    config = workdir_lib.read_config(folder, setting)
    size = dual_encoder.named(config["model"]["name"])
    settings, image_size = config["tokenizer"], tuple(config["dataset"]["image_size"])
    if settings["name"]:
      tokenizer = tokenizer_lib.pretrained_tokenizer(
        settings["name"], settings["context_length"], size.family.is_siglip
      )
    else:
      tokenizer = tokenizer_lib.load_tokenizer(folder / workdir_lib.TOKENIZER)
    params = run_weights.load(folder, choice, weights, setting=setting).params
    graphdef, _ = _abstract_model(
      size,
      image_size,
      tokenizer.context_length,
      tokenizer.vocab_size,
      _dtype(config["model"]["dtype"]),
    )
    resize = config["dataset"]["resize"]
    return cls(graphdef, params, tokenizer, image_size, resize, **options)

  @classmethod
  def from_hugging_face(cls, folder: str | os.PathLike, **options: Any) -> "Retriever":
    """Opens a folder with a CLIP or SigLIP model; see `from_pretrained`.

    Raises:
      UserError: a file is missing or damaged, or the model is of another kind.
    """
    folder = user_files.expanded(folder, "model")
    config = pretrained.read_config(folder)
    family, image_size = config.size.family, config.image_size
    graphdef, template = _abstract_model(
      config.size, image_size, config.context_length, config.vocab_size, _dtype("bfloat16")
    )
    loaded = pretrained.load_pretrained(str(folder), template, image_size=image_size, family=family)
    tokenizer = tokenizer_lib.folder_tokenizer(folder, config.context_length, family.is_siglip)
    resize = pretrained.read_resize(folder)
    return cls(graphdef, loaded.params, tokenizer, image_size, resize, **options)

  def digest(self) -> str:
    """SHA-256 over the parameters, sorted by name; ties an index to its model."""
    return array_digests.digest_of_arrays(pretrained.flatten(self._params))

  @property
  def whole_batch(self) -> int:
    """Images embedded at once by default: `batch_size` rounded up to a multiple of the devices."""
    return self._embedder.whole_batch(self.batch_size)

  def read_image(self, path: str | os.PathLike) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an image file as the model sees them.

    Raises:
      images.UnreadableImageError: the file cannot be decoded.
    """
    return images_lib.read_resized(pathlib.Path(path), self.image_size, self.resize)

  def embed_images(
    self,
    images: Any,
    *,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> Float[np.ndarray, "M D"]:
    """Features of images, rows of norm 1.

    Args:
      images: one image, which gives (1, D), or an iterable of images, such as a dataset. An image
        is a path, a `PIL.Image.Image`, a uint8 array (height, width, 3), a PyTorch tensor as
        torchvision makes it, (3, height, width) in uint8 or in floats from 0 to 1, or a row of a
        dataset, a mapping with the key "image". Each is resized to `image_size` if it has another
        size.
      batch_size: images embedded at once, rounded up to a multiple of the devices.
      progress: shows a progress bar.

    Raises:
      UserError: a file cannot be decoded, an array is no image, or a feature is not finite.
    """
    if isinstance(images, str | os.PathLike | PIL.Image.Image | Mapping):
      images = [images]
    elif (isinstance(images, np.ndarray) or image_tensors.is_tensor(images)) and images.ndim < 4:
      images = [images]
    pixels = images_lib.ordered_map(self._pixels, images, 0)
    num_images = len(images) if hasattr(images, "__len__") else None
    if progress:
      import tqdm

      pixels = iter(tqdm.tqdm(pixels, total=num_images, desc="embedding", leave=False))
    batch_size = self._global_batch(batch_size, num_images)
    batches = embedder.PaddedBatches(pixels, batch_size)
    features = [np.zeros((0, self.feature_width), np.float32)]
    features += self._embedder.embed_images(self._params, batches, batch_size)
    return _finite(np.concatenate(features)[: batches.num_rows])

  def embed_texts(
    self, texts: str | Iterable[str], *, batch_size: int | None = None, progress: bool = False
  ) -> Float[np.ndarray, "N D"]:
    """Features of one description or of several, rows of norm 1.

    Args:
      texts: descriptions; a single one gives (1, D).
      batch_size: texts embedded at once, rounded up to a multiple of the devices.
      progress: shows a progress bar.

    Raises:
      UserError: a description is empty, or a feature is not finite.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
      if not isinstance(text, str) or not text.strip():
        raise UserError(f"a description is {text!r}: give at least one word")
    # Names of files may hold undecodable bytes, which no tokenizer takes.
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    batch_size = self._global_batch(batch_size, len(texts))
    if not texts:
      return np.zeros((0, self.feature_width), np.float32)
    tokens_NxL = self._tokenizer.encode(texts)
    if not progress:
      return _finite(self._embedder.embed_texts(self._params, tokens_NxL, batch_size))
    import tqdm

    with tqdm.tqdm(total=len(texts), desc="embedding", leave=False) as bar:
      return _finite(self._embedder.embed_texts(self._params, tokens_NxL, batch_size, bar.update))

  def knows_a_word_of(self, text: str) -> bool:
    """Whether the vocabulary has one of a description's words whole rather than in pieces.

    SigLIP's vocabularies are of web text, and the answer for them is always yes.
    """
    if not isinstance(self._tokenizer, TokenIds):
      return True
    # The end token has the highest id, and a single token precedes it behind the start token.
    return bool(np.any(np.argmax(self._tokenizer.encode(text.split()), axis=1) == 2))

  def rank(
    self,
    queries_QxD: Float[Array | np.ndarray, "..."],
    gallery_MxD: Float[Array | np.ndarray, "M D"] | Gallery,
    top: int = 10,
  ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """The best of a gallery for every query, by the exact search of the memory bank.

    Args:
      queries_QxD: features of texts or images, one per row.
      gallery_MxD: features, or a `Gallery` that is on the devices already.
      top: K; fewer if the gallery is smaller.

    Returns:
      Cosines, best first, and gallery rows; ties go to the lowest row.

    Raises:
      UserError: a feature is NaN or infinite, the queries are not (Q, D), or `top` is below 1.
    """
    gallery = gallery_MxD if isinstance(gallery_MxD, Gallery) else Gallery(gallery_MxD, self.mesh)
    return gallery.search(queries_QxD, top)

  def _pixels(self, image: Any) -> np.ndarray:
    """An image of any accepted kind at the size of the model."""
    if isinstance(image, Mapping):
      if "image" not in image:
        raise UserError(f"a row of the dataset has no key 'image', only {sorted(image)}")
      image = image["image"]
    if image_tensors.is_tensor(image):
      image = image_tensors.as_array(image)
    if isinstance(image, str | os.PathLike):
      try:
        return self.read_image(image)
      except images_lib.UnreadableImageError as error:
        raise UserError(f"cannot read image {error}") from error
    if isinstance(image, np.ndarray):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
          f"an image array is {image.dtype} {image.shape}: give uint8 (height, width, 3)"
        )
      if image.shape[:2] == self.image_size:
        return image
      image = PIL.Image.fromarray(image)
    elif not isinstance(image, PIL.Image.Image):
      raise UserError(f"an image is a {type(image).__name__}: give a path, PIL image or array")
    return images_lib.resized(images_lib.upright_rgb(image), self.image_size, self.resize)

  def _global_batch(self, batch_size: int | None, num_inputs: int | None) -> int:
    """Rows of a batch that is split over the mesh; None stands for the default."""
    if batch_size is not None and batch_size < 1:
      raise UserError(f"batch_size={batch_size}: give 1 or more")
    return self._embedder.whole_batch(batch_size or self.batch_size, num_inputs)


def _check_tokenizer(tokenizer: Any, text_params: Mapping[str, Any]) -> None:
  """Raises UserError if a text tower has tables for other ids or lengths than the tokenizer gives.

  JAX would read the nearest row in place of one that a table lacks, without a word.
  """
  num_tokens, num_positions = (
    text_params[f"{table}_embedding"].shape[0] for table in ("token", "position")
  )
  # The special ids of `TokenIds` are the last of the table. SigLIP's table may have unused rows.
  is_padded = not isinstance(tokenizer, TokenIds) and tokenizer.vocab_size < num_tokens
  if (
    tokenizer.vocab_size != num_tokens and not is_padded
  ) or tokenizer.context_length != num_positions:
    raise UserError(
      f"the tokenizer is of another model: it has {tokenizer.vocab_size:,} tokens and texts of"
      f" {tokenizer.context_length}, the model's text tower has {num_tokens:,} and {num_positions}"
    )


def _finite(features_NxD: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
  """The features; raises UserError if one is not finite."""
  if not np.isfinite(features_NxD).all():
    raise UserError("the model gives features that are NaN or infinite: its weights are damaged")
  return features_NxD


def _hub_folder(name: str, setting: str) -> pathlib.Path:
  """The local copy of a CLIP model on the Hugging Face hub."""
  if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
    raise UserError(f"{setting}={name}: no such folder")
  hint = "give the folder of a run, or download the model elsewhere and give its folder"
  also = pretrained.PREPROCESSING_FILES
  return hub.fetch(name, *_HUB_FILES, also=also, setting=setting, hint=hint)


def _dtype(name: str) -> Any:
  """The dtype of the encoders' arithmetic; bfloat16 is slow on a CPU."""
  return jnp.float32 if jax.default_backend() == "cpu" else jnp.dtype(name)


def _abstract_model(
  size: dual_encoder.Size,
  image_size: tuple[int, int],
  context_length: int,
  vocab_size: int,
  dtype: Any,
) -> tuple[nnx.GraphDef, dict[str, Any]]:
  """The structure of a model, and its parameters as shapes."""

  def create() -> dual_encoder.DualEncoder:
    return dual_encoder.DualEncoder(
      size,
      image_size=image_size,
      context_length=context_length,
      vocab_size=vocab_size,
      dtype=dtype,
      backend=backend.choose(jax.local_devices()[0], dtype),
      rngs=nnx.Rngs(0),
    )

  model = nnx.eval_shape(create)
  return nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
