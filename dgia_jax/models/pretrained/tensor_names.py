"""Tables from the parameters of a model to the tensors of CLIP and SigLIP checkpoints.

OpenAI, whose names open_clip kept, and Hugging Face use different tensor names. A parameter is
identified by its path in the nested dict, joined with "/". Torch stores linear kernels as (out,
in) and convolutions as (out, in, height, width); a `Rule` converts between that layout and ours.
The parameters of a tower's blocks are stacked over layers, except those of the last block: one rule
describes one tensor (or one group) per layer, the last included, and "{layer}" in its names is the
number of the layer.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

POSITION_EMBEDDING = "image/position_embedding"
CLASS_TOKEN, PROBE = "image/class_embedding", "image/pooling/probe"  # CLIP's, SigLIP's


@dataclasses.dataclass(frozen=True)
class Rule:
  """How checkpoints store one parameter.

  Attributes:
    names: of its tensors; several are joined along their first axis.
    layout: "same" as the parameter; "flat", one axis; "linear", a kernel; "linear_of_heads", a
      kernel whose input axes are (heads, head width); "conv", a convolution's kernel; "token", one
      token of a batch of one sequence.
  """

  names: tuple[str, ...]
  layout: str

  def for_layer(self, layer: int) -> "Rule":
    """Returns the rule of one block."""
    return Rule(tuple(name.format(layer=layer) for name in self.names), self.layout)

  def checkpoint_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that a parameter of this shape has in a checkpoint, all tensors joined."""
    match self.layout:
      case "same":
        return shape
      case "token":
        return (1, 1, *shape)
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
    """Converts the joined tensors to a parameter."""
    if self.layout == "conv":
      return tensor.transpose(2, 3, 1, 0)
    if self.layout.startswith("linear"):
      tensor = tensor.T
    return tensor.reshape(shape)

  def write(self, parameter: np.ndarray) -> dict[str, np.ndarray]:
    """Converts a parameter to its tensors, by name: the inverse of `read`."""
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
    # OpenAI joins query, key and value in one tensor, named with "_" where other names have ".".
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
  CLASS_TOKEN: Rule(("visual.class_embedding",), "same"),
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
  CLASS_TOKEN: Rule(("vision_model.embeddings.class_embedding",), "same"),
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

SIGLIP = {
  "image/patch_embedding": Rule(("vision_model.embeddings.patch_embedding.weight",), "conv"),
  "image/patch_bias": Rule(("vision_model.embeddings.patch_embedding.bias",), "same"),
  POSITION_EMBEDDING: Rule(("vision_model.embeddings.position_embedding.weight",), "same"),
  **_hugging_face_blocks("image/blocks", "vision_model.encoder.layers.{layer}"),
  **_norm("image/norm_post", "vision_model.post_layernorm"),
  PROBE: Rule(("vision_model.head.probe",), "token"),
  # Here query, key and value are joined.
  "image/pooling/attention/qkv/kernel": Rule(
    ("vision_model.head.attention.in_proj_weight",), "linear"
  ),
  "image/pooling/attention/qkv/bias": Rule(("vision_model.head.attention.in_proj_bias",), "flat"),
  **_linear(
    "image/pooling/attention/out",
    "vision_model.head.attention.out_proj",
    layout="linear_of_heads",
  ),
  **_norm("image/pooling/norm", "vision_model.head.layernorm"),
  **_linear("image/pooling/mlp/up", "vision_model.head.mlp.fc1"),
  **_linear("image/pooling/mlp/down", "vision_model.head.mlp.fc2"),
  "text/token_embedding": Rule(("text_model.embeddings.token_embedding.weight",), "same"),
  "text/position_embedding": Rule(("text_model.embeddings.position_embedding.weight",), "same"),
  **_hugging_face_blocks("text/blocks", "text_model.encoder.layers.{layer}"),
  **_norm("text/norm_final", "text_model.final_layer_norm"),
  "text/projection": Rule(("text_model.head.weight",), "linear"),
  "text/projection_bias": Rule(("text_model.head.bias",), "same"),
}

# The parameter whose tensor shows which table a checkpoint follows.
_LANDMARKS = ((OPENAI, CLASS_TOKEN), (HUGGING_FACE, CLASS_TOKEN), (SIGLIP, PROBE))

# Tensors that checkpoints hold besides the weights of the encoders: the temperature, which is a
# setting here, the bias of SigLIP's loss, sizes, the causal mask, and tables of 0, 1, 2, ...
NOT_WEIGHTS = frozenset({
  "logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size",
  "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids",
})  # fmt: skip


def find_convention(names: Iterable[str]) -> tuple[dict[str, Rule], str] | None:
  """Finds the table that a checkpoint's tensor names follow.

  Returns:
    The table, and the prefix that a program around CLIP added to the names: "" for plain CLIP,
    "model.base_model." in checkpoints of the released program. None if the names hold neither CLIP
    nor SigLIP, or more than one model.
  """
  matches = []
  for table, parameter in _LANDMARKS:
    (landmark,) = table[parameter].names
    for name in names:
      prefix = name.removesuffix(landmark)
      if prefix != name and (not prefix or prefix.endswith(".")):
        matches.append((table, prefix))
  return matches[0] if len(matches) == 1 else None
