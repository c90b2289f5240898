"""transformers' CLIPModel built from a config, for images of any height and width."""

from typing import Any

import torch
import transformers

from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained import tensor_names


class _Embeddings(torch.nn.Module):
  """CLIP's patch, class and position embeddings with one learned position per patch.

  transformers' own module knows square images only and resizes its table in each pass.
  """

  def __init__(self, width, patch_size, num_patches):
    super().__init__()
    self.class_embedding = torch.nn.Parameter(torch.randn(width) * width**-0.5)
    self.patch_embedding = torch.nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
    self.position_embedding = torch.nn.Embedding(num_patches + 1, width)
    torch.nn.init.normal_(self.position_embedding.weight, std=width**-0.5)

  def forward(self, pixel_values, interpolate_pos_encoding=False):
    del interpolate_pos_encoding
    patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)
    return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class Encoders(torch.nn.Module):
  """Both CLIP towers of transformers with random weights.

  Args:
    size: a `dual_encoder.Size`.
    image_size: (height, width) in pixels.
    context_length, vocab_size: of the texts.
  """

  def __init__(self, size, image_size, context_length, vocab_size):
    super().__init__()

    def tower(tower_size):
      return {
        "hidden_size": tower_size.width,
        "intermediate_size": 4 * tower_size.width,
        "num_hidden_layers": tower_size.depth,
        "num_attention_heads": tower_size.heads,
        "hidden_act": "quick_gelu",
        "projection_dim": size.feature_width,
      }

    text = {
      **tower(size.text),
      "vocab_size": vocab_size,
      "max_position_embeddings": context_length,
      "pad_token_id": 0,
      "bos_token_id": vocab_size - 2,
      "eos_token_id": vocab_size - 1,
    }
    vision = {**tower(size.image), "patch_size": size.patch_size, "image_size": max(image_size)}
    self.clip = transformers.CLIPModel(
      transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=size.feature_width
      )
    )
    self.clip.vision_model.embeddings = _Embeddings(
      size.image.width, size.patch_size, size.num_patches(image_size)
    )
    del self.clip.logit_scale  # the temperature is a setting

  def image(self, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) normalised pixels -> (B, D) float32, not normalised."""
    pooled = self.clip.vision_model(pixel_values=pixels).pooler_output
    return self.clip.visual_projection(pooled).float()

  def text(self, tokens: torch.Tensor) -> torch.Tensor:
    """(B, L) token ids -> (B, D) float32, not normalised."""
    pooled = self.clip.text_model(input_ids=tokens).pooler_output
    return self.clip.text_projection(pooled).float()

  def load_params(self, params: dict[str, Any]) -> None:
    """Copies our parameters, a nested dict of arrays; every tensor must match."""
    tensors = params_lib.write_tensors(params, tensor_names.HUGGING_FACE)
    self.clip.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
