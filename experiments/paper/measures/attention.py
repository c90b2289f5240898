"""Figure 2: which image regions speak for a word of a caption.

Method: gradient-weighted attention, rolled out over the layers of the image tower (Chefer, Gur and
Wolf, "Generic Attention-Model Explainability", ICCV 2021). Each layer's attention is weighted by
its gradient, negative entries are dropped, heads are averaged, and the layers are multiplied with
the residual path kept; the class token's row then says how much each patch mattered. Why this one:
plain attention or rollout is the same for every word, since the image tower never sees the caption,
while the gradient asks for one score; and it needs nothing of the model but its weights.

The score of a word is what the word adds: cosine(image, caption) minus cosine(image, caption with
the word masked). The model was trained with masked words, so the second caption is no stranger to
it. Words are chosen by how much they add, captions by their place in the split, not by outcome.

Letters: A heads, E width of a head, S tokens of the image (class token first), Y layers.
"""

import base64
import io

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from dgia_jax.models import pixels as pixels_lib
from experiments.paper.measures import finished

CAPTIONS = 4
WORDS = 3


def measure(config, folder, splits, choice, captions=CAPTIONS, words=WORDS):
  """Relevance of image patches for the words that matter most, for some test captions.

  Args:
    config, folder, splits, choice: as `finished.open_run`.
    captions: how many.
    words: of each caption, those that add most to the cosine with the caption's own image.

  Returns:
    {"step", "examples": [{"caption", "image" (PNG, base64), "cosine", "words": [{"word", "adds"
    (cosine), "relevance" (rows of patches, sum 1 or all 0)}]}]}.
  """
  parts, params, step = finished.open_run(config, folder, splits, choice)
  pairs = splits["test"]
  model = nnx.merge(parts.graphdef, jax.device_get(params))
  chosen = finished.spread(pairs.num_pairs, captions)
  examples = [
    _example(model, parts.tokenizer, pairs.captions[pair], pairs.images[image], words)
    for pair, image in zip(chosen, pairs.image_of_pair_N[chosen], strict=True)
  ]
  return {"step": step, "examples": examples}


def _example(model, tokenizer, caption, image, words):
  """One caption with its own image; see `measure`."""
  spans = word_spans(tokenizer, caption)
  tokens_L = tokenizer.encode([caption])[0]
  masked = np.repeat(tokens_L[None], len(spans), axis=0)
  for row, (_, start, end) in enumerate(spans):
    masked[row, start:end] = tokenizer.mask_id
  texts = _unit(model.encode_text(jnp.concatenate([tokens_L[None], masked])))
  pixels = pixels_lib.normalize_pixels(jnp.asarray(image)[None])
  cosines = np.asarray(texts @ _unit(model.encode_image(pixels))[0])
  adds = cosines[0] - cosines[1:]
  best = np.argsort(-adds, kind="stable")[:words]
  height, width = (side // model.image.patch_embedding.shape[0] for side in image.shape[:2])
  relevance = jax.jit(patch_relevance, static_argnums=0)
  graphdef, state = nnx.split(model.image)
  found = [
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
    "words": found,
  }


def word_spans(tokenizer, caption):
  """[(word, first token, past the last token)] of the words that lie inside the context.

  A word is what stands between spaces; its tokens are those by which the caption grows with it.
  """
  words = caption.split()
  prefixes = [" ".join(words[: i + 1]) for i in range(len(words))]
  ids = tokenizer.encode(prefixes)
  ends = np.sum((ids > 0) & (ids < tokenizer.mask_id), axis=1) + 1  # the start token is before them
  starts = np.concatenate([[1], ends[:-1]])
  rows = zip(words, starts.tolist(), ends.tolist(), strict=True)
  return [(word, start, end) for word, start, end in rows if end > start]


def patch_relevance(graphdef, state, pixels_1xHxWx3, direction_D):
  """Relevance of every patch for the product of the unit image feature and a direction.

  Args:
    graphdef, state: of the ImageTower, from `nnx.split`.
    pixels_1xHxWx3: one normalised image.
    direction_D: what the unit image feature is multiplied with.

  Returns:
    (S - 1,) float32, not negative, sum 1 (all 0 where no patch speaks for it).
  """
  tower = nnx.merge(graphdef, state)
  layers, _, _, heads, _ = tower.blocks.attention.qkv.kernel.shape
  tokens = tower.position_embedding.shape[0]

  def score(change_YxAxSxS):
    feature_D, attention_YxAxSxS = image_feature(tower, pixels_1xHxWx3, change_YxAxSxS)
    return jnp.dot(_unit(feature_D[None])[0], direction_D), attention_YxAxSxS

  # The gradient with respect to a change of the attention is that with respect to the attention.
  zeros = jnp.zeros((layers, heads, tokens, tokens))
  gradient_YxAxSxS, attention_YxAxSxS = jax.grad(score, has_aux=True)(zeros)
  weighted_YxSxS = jnp.mean(jax.nn.relu(gradient_YxAxSxS * attention_YxAxSxS), axis=1)
  rollout = lambda total, layer: (total + layer @ total, None)
  total_SxS, _ = jax.lax.scan(rollout, jnp.eye(tokens), weighted_YxSxS)
  patches = total_SxS[0, 1:]
  return patches / jnp.maximum(jnp.sum(patches), jnp.finfo(jnp.float32).tiny)


def image_feature(tower, pixels_1xHxWx3, change_YxAxSxS):
  """The image tower's forward pass with its attention laid open.

  Args:
    tower: ImageTower.
    pixels_1xHxWx3: one normalised image.
    change_YxAxSxS: added to the attention of each layer; zeros leave the model as it is.

  Returns:
    (D,) feature, not normalised, and (Y, A, S, S) attention.
  """

  def block_forward(x_SxC, layer):
    block, change_AxSxS = layer
    qkv_Sx3xAxE = block.attention.qkv(block.norm_1(x_SxC))
    q_SxAxE, k_SxAxE, v_SxAxE = (qkv_Sx3xAxE[:, i] for i in range(3))
    scores_AxSxS = jnp.einsum("sae,tae->ast", q_SxAxE, k_SxAxE).astype(jnp.float32)
    attention_AxSxS = jax.nn.softmax(scores_AxSxS * q_SxAxE.shape[-1] ** -0.5) + change_AxSxS
    mixed_SxAxE = jnp.einsum("ast,tae->sae", attention_AxSxS.astype(v_SxAxE.dtype), v_SxAxE)
    x_SxC = x_SxC + block.attention.out(mixed_SxAxE)
    return x_SxC + block.mlp(block.norm_2(x_SxC)[None])[0], attention_AxSxS

  x_SxC = tower.norm_pre(tower.embed_patches(pixels_1xHxWx3))[0]
  x_SxC, attention_YxAxSxS = jax.lax.scan(block_forward, x_SxC, (tower.blocks, change_YxAxSxS))
  return tower.norm_post(x_SxC[0]) @ tower.projection[...], attention_YxAxSxS


def encode_image(image_HxWx3):
  """uint8 image -> PNG as text."""
  buffer = io.BytesIO()
  Image.fromarray(image_HxWx3).save(buffer, format="PNG")
  return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_image(text):
  """PNG as text -> uint8 (H, W, 3)."""
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def _unit(x_NxD):
  return x_NxD / jnp.linalg.norm(x_NxD, axis=-1, keepdims=True)
