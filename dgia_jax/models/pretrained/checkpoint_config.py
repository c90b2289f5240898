"""What the config of a checkpoint says about its model."""

import dataclasses

from dgia_jax.models import dual_encoder


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """The model that a config.json or an open_clip_config.json describes.

  Attributes:
    size: of both towers.
    image_size: (height, width) in pixels of the images the model was trained on.
    context_length: longest text in tokens.
    vocab_size: number of token ids.
    has_trained_size: whether `image_size` is our own field, `trained_image_size`.
    unsupported: one short text for each field whose value the models of this package lack.
  """

  size: dual_encoder.Size
  image_size: tuple[int, int]
  context_length: int
  vocab_size: int
  has_trained_size: bool = False
  unsupported: tuple[str, ...] = ()

  @property
  def grid(self) -> tuple[int, int]:
    """Patches down and across an image."""
    height, width = self.image_size
    return height // self.size.patch_size, width // self.size.patch_size
