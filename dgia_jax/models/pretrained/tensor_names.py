"""Which tensors of a CLIP checkpoint make which parameter: OpenAI's names and Hugging Face's.

A parameter is known by its path in the nested dict, joined with "/". Torch keeps linear kernels as
(out, in) and convolutions as (out, in, height, width); a `Rule` says how to get from there to our
layout and back. Parameters of a tower's blocks are stacked over layers, so their rule stands for
one tensor (or one group) per layer, and "{layer}" in its names for the number.
"""

import dataclasses
import math

import numpy as np

POSITION_EMBEDDING = "image/position_embedding"


@dataclasses.dataclass(frozen=True)
class Rule:
  """How one parameter is made.

  Attributes:
    names: the tensors, joined along their first axis when there are several.
    layout: "same" shape; "flat" in the checkpoint; "linear" or "linear_of_heads" kernel, where
      the latter has (heads, head width) as its input; "conv" kernel.
  """

  names: tuple[str, ...]
  layout: str

  def for_layer(self, layer: int) -> "Rule":
    """The rule of a single block."""
    return Rule(tuple(name.format(layer=layer) for name in self.names), self.layout)

  def checkpoint_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the checkpoint, all names joined, of a parameter of this shape."""
    match self.layout:
      case "same":
        return shape
      case "flat":
        return (math.prod(shape),)
      case "linear":
        return (math.prod(shape[1:]), shape[0])
      case "linear_of_heads":
        return (shape[-1], math.prod(shape[:-1]))
      case "conv":
        return (shape[3], shape[2], shape[0], shape[1])
    raise ValueError(self.layout)

  def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The joined tensor in our layout."""
    if self.layout == "conv":
      return tensor.transpose(2, 3, 1, 0)
    if self.layout.startswith("linear"):
      tensor = tensor.T
    return tensor.reshape(shape)

  def write(self, parameter: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that `read` makes this parameter from, by name."""
    shape = self.checkpoint_shape(parameter.shape)
    if self.layout == "conv":
      tensor = parameter.transpose(3, 2, 0, 1)
    elif self.layout.startswith("linear"):
      tensor = parameter.reshape(shape[::-1]).T
    else:
      tensor = parameter.reshape(shape)
    return dict(zip(self.names, np.split(tensor, len(self.names)), strict=True))


def _norm(path: str, name: str) -> dict[str, Rule]:
  return {
    f"{path}/scale": Rule((f"{name}.weight",), "same"),
    f"{path}/bias": Rule((f"{name}.bias",), "same"),
  }


def _linear(path: str, *names: str, layout: str = "linear") -> dict[str, Rule]:
  return {
    f"{path}/kernel": Rule(tuple(f"{name}.weight" for name in names), layout),
    f"{path}/bias": Rule(tuple(f"{name}.bias" for name in names), "flat"),
  }


def _openai_blocks(path: str, name: str) -> dict[str, Rule]:
  return {
    **_norm(f"{path}/norm_1", f"{name}.ln_1"),
    # OpenAI joins query, key and value in one tensor whose name has "_" where others have ".".
    f"{path}/attention/qkv/kernel": Rule((f"{name}.attn.in_proj_weight",), "linear"),
    f"{path}/attention/qkv/bias": Rule((f"{name}.attn.in_proj_bias",), "flat"),
    **_linear(f"{path}/attention/out", f"{name}.attn.out_proj", layout="linear_of_heads"),
    **_norm(f"{path}/norm_2", f"{name}.ln_2"),
    **_linear(f"{path}/mlp/up", f"{name}.mlp.c_fc"),
    **_linear(f"{path}/mlp/down", f"{name}.mlp.c_proj"),
  }


def _hugging_face_blocks(path: str, name: str) -> dict[str, Rule]:
  attention = f"{name}.self_attn"
  return {
    **_norm(f"{path}/norm_1", f"{name}.layer_norm1"),
    **_linear(f"{path}/attention/qkv", *(f"{attention}.{part}_proj" for part in "qkv")),
    **_linear(f"{path}/attention/out", f"{attention}.out_proj", layout="linear_of_heads"),
    **_norm(f"{path}/norm_2", f"{name}.layer_norm2"),
    **_linear(f"{path}/mlp/up", f"{name}.mlp.fc1"),
    **_linear(f"{path}/mlp/down", f"{name}.mlp.fc2"),
  }


OPENAI = {
  "image/patch_embedding": Rule(("visual.conv1.weight",), "conv"),
  "image/class_embedding": Rule(("visual.class_embedding",), "same"),
  POSITION_EMBEDDING: Rule(("visual.positional_embedding",), "same"),
  **_norm("image/norm_pre", "visual.ln_pre"),
  **_openai_blocks("image/blocks", "visual.transformer.resblocks.{layer}"),
  **_norm("image/norm_post", "visual.ln_post"),
  "image/projection": Rule(("visual.proj",), "same"),
  "text/token_embedding": Rule(("token_embedding.weight",), "same"),
  "text/position_embedding": Rule(("positional_embedding",), "same"),
  **_openai_blocks("text/blocks", "transformer.resblocks.{layer}"),
  **_norm("text/norm_final", "ln_final"),
  "text/projection": Rule(("text_projection",), "same"),
}

HUGGING_FACE = {
  "image/patch_embedding": Rule(("vision_model.embeddings.patch_embedding.weight",), "conv"),
  "image/class_embedding": Rule(("vision_model.embeddings.class_embedding",), "same"),
  POSITION_EMBEDDING: Rule(("vision_model.embeddings.position_embedding.weight",), "same"),
  **_norm("image/norm_pre", "vision_model.pre_layrnorm"),  # the missing "e" is theirs
  **_hugging_face_blocks("image/blocks", "vision_model.encoder.layers.{layer}"),
  **_norm("image/norm_post", "vision_model.post_layernorm"),
  "image/projection": Rule(("visual_projection.weight",), "linear"),
  "text/token_embedding": Rule(("text_model.embeddings.token_embedding.weight",), "same"),
  "text/position_embedding": Rule(("text_model.embeddings.position_embedding.weight",), "same"),
  **_hugging_face_blocks("text/blocks", "text_model.encoder.layers.{layer}"),
  **_norm("text/norm_final", "text_model.final_layer_norm"),
  "text/projection": Rule(("text_projection.weight",), "linear"),
}

# In checkpoints of either kind, but no weights of the encoders: the temperature is a setting here,
# the others are sizes and tables of 0, 1, 2, ...
NOT_WEIGHTS = frozenset({
  "logit_scale", "input_resolution", "context_length", "vocab_size",
  "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids",
})  # fmt: skip


def find_convention(tensor_names) -> tuple[dict[str, Rule], str] | None:
  """Which table the names follow, and the prefix that a program around CLIP put before them.

  Returns:
    (table, prefix); prefix is "" for a plain CLIP and "model.base_model." in the released
    program's checkpoints. None when there is no CLIP, or more than one.
  """
  found = []
  for table in (OPENAI, HUGGING_FACE):
    (landmark,) = table["image/class_embedding"].names
    for name in tensor_names:
      prefix = name.removesuffix(landmark)
      if prefix != name and (not prefix or prefix.endswith(".")):
        found.append((table, prefix))
  return found[0] if len(found) == 1 else None
