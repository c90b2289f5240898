"""Figure 2: the image regions that support a word of a caption.

Method: gradient-weighted attention rollout over the layers of the image tower (Chefer, Gur and
Wolf, "Generic Attention-Model Explainability", ICCV 2021). Each layer's attention is weighted by
its gradient, negative entries are set to zero, and heads are averaged. The layers are multiplied,
with the residual path included; the class token's row is the relevance of each patch. Plain
attention or rollout would be the same for every word, because the image tower does not see the
caption; the gradient refers to one score.

The score of a word is its contribution: cosine(image, caption) minus cosine(image, caption with the
word masked). The model was trained with masked words, so it knows such captions. Captions are
spread evenly over the split; the words are those that contribute most.

Letters: A heads, W width of a head, U width of the tower, T tokens of the image (class token
first), Y layers.
"""

import base64
import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from dgia_jax.data.tokenizer import Tokenizer
from dgia_jax.errors import UserError
from dgia_jax.models.dual_encoder import DualEncoder
from dgia_jax.models.image_tower import ImageTower
from experiments.paper.measures import finished

CAPTIONS = 4
WORDS = 3


def measure(
  config: ConfigDict,
  folder: pathlib.Path,
  splits: finished.Splits,
  choice: str,
  captions: int = CAPTIONS,
  words: int = WORDS,
) -> dict[str, Any]:
  """Relevance of image patches for the most important words of some test captions.

  Args:
    config, folder, splits, choice: as `finished.open_run`.
    captions: number of captions.
    words: number of words per caption, those that add most to the cosine with its image.

  Returns:
    {"step", "examples": [{"caption", "image" (PNG, base64), "cosine", "words": [{"word", "adds"
    (cosine), "relevance" (rows of patches, sum 1 or all 0)}]}]}.

  Raises:
    UserError: the model has no class token.
  """
  setup, params, step = finished.open_run(config, folder, splits, choice)
  pairs = splits["test"]
  if setup.size.family.is_siglip:
    raise UserError(f"attention is measured at a class token, which {config.model.name} lacks")
  model = nnx.merge(setup.graphdef, jax.device_get(params))
  chosen = finished.spread(pairs.num_pairs, captions)
  examples = [
    _example(model, setup.tokenizer, pairs.captions[pair], pairs.images[image], words)
    for pair, image in zip(chosen, pairs.image_of_pair_N[chosen], strict=True)
  ]
  return {"step": step, "examples": examples}


def _example(
  model: DualEncoder, tokenizer: Tokenizer, caption: str, image: np.ndarray, words: int
) -> dict[str, Any]:
  """The example of one caption and its own image; see `measure`."""
  spans = word_spans(tokenizer, caption)
  tokens_L = tokenizer.encode([caption])[0]
  masked = np.repeat(tokens_L[None], len(spans), axis=0)
  for row, (_, start, end) in enumerate(spans):
    masked[row, start:end] = tokenizer.mask_id
  texts = _unit(model.encode_text(jnp.concatenate([tokens_L[None], masked])))
  pixels = model.normalize_pixels(jnp.asarray(image)[None])
  cosines = np.asarray(texts @ _unit(model.encode_image(pixels))[0])
  adds = cosines[0] - cosines[1:]
  best = np.argsort(-adds, kind="stable")[:words]
  height, width = (side // model.image.patch_embedding.shape[0] for side in image.shape[:2])
  relevance = jax.jit(patch_relevance, static_argnums=0)
  graphdef, state = nnx.split(model.image)
  chosen = [
    {
      "word": spans[row][0],
      "adds": float(adds[row]),
      "relevance": np.asarray(relevance(graphdef, state, pixels, texts[0] - texts[1 + row]))
      .reshape(height, width)
      .tolist(),
    }
    for row in best
  ]
  return {
    "caption": caption,
    "image": encode_image(image),
    "cosine": float(cosines[0]),
    "words": chosen,
  }


def word_spans(tokenizer: Tokenizer, caption: str) -> list[tuple[str, int, int]]:
  """(word, first token, end of its tokens) of the words within the context length.

  Words are separated by spaces. The tokens of a word are those that it adds to the caption.
  """
  words = caption.split()
  prefixes = [" ".join(words[: i + 1]) for i in range(len(words))]
  ids = tokenizer.encode(prefixes)
  ends = np.sum((ids > 0) & (ids < tokenizer.mask_id), axis=1) + 1  # the start token precedes them
  starts = np.concatenate([[1], ends[:-1]])
  rows = zip(words, starts.tolist(), ends.tolist(), strict=True)
  return [(word, start, end) for word, start, end in rows if end > start]


def patch_relevance(
  graphdef: nnx.GraphDef,
  state: nnx.State,
  pixels_1xHxWx3: Float[Array, "1 H W 3"],
  direction_D: Float[Array, " D"],
) -> Float[Array, " _"]:
  """Relevance of every patch for the product of the unit image feature and a direction.

  Args:
    graphdef, state: of the ImageTower, from `nnx.split`.
    pixels_1xHxWx3: one normalised image.
    direction_D: factor of the unit image feature.

  Returns:
    T - 1 numbers >= 0 with sum 1, or all 0 if no patch is relevant.
  """
  tower = nnx.merge(graphdef, state)
  stacked, _, _, heads, _ = tower.blocks.attention.qkv.kernel.shape
  layers = stacked + 1
  tokens = tower.position_embedding.shape[0]

  def score(
    change_YxAxTxT: Float[Array, "Y A T T"],
  ) -> tuple[Float[Array, ""], Float[Array, "Y A T T"]]:
    feature_D, attention_YxAxTxT = image_feature(tower, pixels_1xHxWx3, change_YxAxTxT)
    return jnp.dot(_unit(feature_D[None])[0], direction_D), attention_YxAxTxT

  # The gradient with respect to an added change equals that with respect to the attention.
  zeros = jnp.zeros((layers, heads, tokens, tokens))
  gradient_YxAxTxT, attention_YxAxTxT = jax.grad(score, has_aux=True)(zeros)
  weighted_YxTxT = jnp.mean(jax.nn.relu(gradient_YxAxTxT * attention_YxAxTxT), axis=1)
  rollout = lambda total, layer: (total + layer @ total, None)
  total_TxT, _ = jax.lax.scan(rollout, jnp.eye(tokens), weighted_YxTxT)
  patches = total_TxT[0, 1:]
  return patches / jnp.maximum(jnp.sum(patches), jnp.finfo(jnp.float32).tiny)


def image_feature(
  tower: ImageTower,
  pixels_1xHxWx3: Float[Array, "1 H W 3"],
  change_YxAxTxT: Float[Array | np.ndarray, "Y A T T"],
) -> tuple[Float[Array, " D"], Float[Array, "Y A T T"]]:
  """The image tower's forward pass; also returns the attention of each layer.

  Args:
    tower: of the model.
    pixels_1xHxWx3: one normalised image.
    change_YxAxTxT: added to the attention of each layer.

  Returns:
    The unnormalised feature and the attention.
  """

  def block_forward(x_TxU, layer):
    block, change_AxTxT = layer
    qkv_Tx3xAxW = block.attention.qkv(block.norm_1(x_TxU))
    q_TxAxW, k_TxAxW, v_TxAxW = (qkv_Tx3xAxW[:, i] for i in range(3))
    scores_AxTxT = jnp.einsum("qaw,kaw->aqk", q_TxAxW, k_TxAxW).astype(jnp.float32)
    attention_AxTxT = jax.nn.softmax(scores_AxTxT * q_TxAxW.shape[-1] ** -0.5) + change_AxTxT
    mixed_TxAxW = jnp.einsum("aqk,kaw->qaw", attention_AxTxT.astype(v_TxAxW.dtype), v_TxAxW)
    x_TxU = x_TxU + block.attention.out(mixed_TxAxW)
    return x_TxU + block.mlp(block.norm_2(x_TxU)[None])[0], attention_AxTxT

  x_TxU = tower.norm_pre(tower.embed_patches(pixels_1xHxWx3))[0]
  all_blocks = jax.tree.map(
    lambda stacked, last: jnp.concatenate([stacked, last[None]]), tower.blocks, tower.last_block
  )
  x_TxU, attention_YxAxTxT = jax.lax.scan(block_forward, x_TxU, (all_blocks, change_YxAxTxT))
  return tower.norm_post(x_TxU[0]) @ tower.projection[...], attention_YxAxTxT


def encode_image(image_HxWx3: UInt8[np.ndarray, "H W 3"]) -> str:
  """Encodes an image as a base64 PNG."""
  buffer = io.BytesIO()
  Image.fromarray(image_HxWx3).save(buffer, format="PNG")
  return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_image(text: str) -> UInt8[np.ndarray, "H W 3"]:
  """Decodes a base64 PNG."""
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def _unit(x_NxD: Float[Array, "N D"]) -> Float[Array, "N D"]:
  """Rows scaled to unit length."""
  return x_NxD / jnp.linalg.norm(x_NxD, axis=-1, keepdims=True)
