"""The arithmetic of a training step, counted analytically, and the peak of a chip.

A multiply-add counts as two operations. Only matrix products are counted: everything else (norms,
softmax, activations, the optimiser) is under 2 % of a step and does not run on the units that a
chip's peak describes. The count is that of the model, not of a program: rematerialisation adds
nothing, and causal attention counts in full, as is usual.

A training step costs three forward passes: one forward, and two products of the same size for each
product in the backward pass.
"""

from dgia_jax.method import augment
from dgia_jax.models.dual_encoder import Size, TowerSize

TRAINING_PASSES = 3  # forward, gradient of the inputs, gradient of the weights
VIEWS = 2  # the clean and the distorted view of every pair, section 3.4

# Dense bfloat16 peak of one device in FLOP/s, by a part of `jax.Device.device_kind`; the first
# match counts. TPU: cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e, "Peak compute per chip".
# NVIDIA: data sheets of the A100, H100 and H200; they print twice as much for sparse matrices.
PEAKS = (
  ("TPU v4 lite", 138e12),
  ("TPU v4", 275e12),
  ("TPU v5 lite", 197e12),  # v5e
  ("TPU v5e", 197e12),
  ("TPU v5", 459e12),  # v5p; older versions of jax say "TPU v5", newer ones "TPU v5p"
  ("TPU v6", 918e12),  # v6e, "TPU v6 lite"
  ("H200", 989.4e12),
  ("H100 PCIe", 756e12),
  ("H100", 989.4e12),  # SXM
  ("A100", 312e12),
)


def peak_flops(device_kind: str) -> float | None:
  """Dense bfloat16 peak of one device in FLOP/s; None for an unknown kind."""
  return next((peak for name, peak in PEAKS if name in device_kind), None)


def transformer_flops(size: TowerSize, tokens: float, full_last_block: bool = False) -> float:
  """Forward FLOPs of one sequence of `tokens`, a mean maybe, through the blocks of a tower.

  The last block computes keys and values of all tokens, and the rest for one token, or for all with
  `full_last_block`.
  """
  keys_and_values, others, attention = _token_products(size, tokens)
  read = tokens if full_last_block else 1  # tokens of the last block that are computed
  full_blocks = (size.depth - 1) * tokens * (keys_and_values + others + attention)
  return 2 * (full_blocks + tokens * keys_and_values + read * (others + attention))


def pooling_flops(size: TowerSize, tokens: float) -> float:
  """Forward FLOPs of SigLIP's pooling: one query and an MLP."""
  keys_and_values, others, attention = _token_products(size, tokens)
  return 2 * (tokens * keys_and_values + others + attention)


def _token_products(size: TowerSize, tokens: float) -> tuple[int, int, float]:
  """Multiply-adds of one token in a block: key and value; query, output and MLP; attention."""
  width, mlp_width = size.width, size.mlp_width or 4 * size.width
  return 2 * width**2, 2 * width**2 + 2 * width * mlp_width, 2 * tokens * width


def forward_flops(
  size: Size,
  image_size: tuple[int, int],
  text_tokens: float,
  full_last_block: bool = False,
  patch_drop_ratio: float = 0.0,
) -> dict[str, float]:
  """Forward FLOPs of one image and of one text.

  Args:
    size: of the dual encoder.
    image_size: (height, width) in pixels.
    text_tokens: tokens of a text that are computed, with padding; their mean where texts differ.
    full_last_block: as in `transformer_flops`.
    patch_drop_ratio: share of the image's patches that are not read.

  Returns:
    {"image": FLOPs per image, "text": FLOPs per text}.
  """
  patches = augment.num_kept_patches(size.num_patches(image_size), patch_drop_ratio)
  projection = lambda tower: 2 * tower.width * size.feature_width
  image = 2 * patches * 3 * size.patch_size**2 * size.image.width  # patch embedding
  if size.family.is_siglip:
    image += transformer_flops(size.image, patches, full_last_block=True)
    image += pooling_flops(size.image, patches)
  else:
    image += transformer_flops(size.image, patches + 1, full_last_block) + projection(size.image)
  text = transformer_flops(size.text, text_tokens, full_last_block) + projection(size.text)
  return {"image": image, "text": text}


def train_pair_flops(
  size: Size,
  image_size: tuple[int, int],
  text_tokens: float,
  views: int = VIEWS,
  full_last_block: bool = False,
  patch_drop_ratio: float = 0.0,
) -> float:
  """FLOPs of both towers for one pair of a training step: forward and backward of every view.

  Args:
    size, image_size, text_tokens, full_last_block: as in `forward_flops`.
    views: 2 with the consistency loss, 1 without.
    patch_drop_ratio: share of the patches of the distorted view that are not read.
  """
  forward = lambda drop_ratio: sum(
    forward_flops(size, image_size, text_tokens, full_last_block, drop_ratio).values()
  )
  return TRAINING_PASSES * (forward(0.0) + (views - 1) * forward(patch_drop_ratio))


def bank_flops(batch: int, rows: int, dim: int) -> int:
  """FLOPs of one search: every anchor of the batch against every row of one modality's bank."""
  return 2 * batch * rows * dim


def loss_flops(batch: int, dim: int, k: int = 3) -> int:
  """FLOPs of the four losses of one global batch, relations included, without the bank's search.

  Args:
    batch: B, pairs of the global batch.
    dim: D, width of a feature.
    k: mined neighbours per anchor; 0 leaves the global loss out.
  """
  square = lambda rows: 2 * rows**2 * dim
  # Contrastive, local and consistency loss compare images with texts, forward and backward. Local
  # relations of both views compare images with images and texts with texts, forward alone.
  total = TRAINING_PASSES * 3 * square(batch) + 2 * 2 * square(batch)
  return total + (TRAINING_PASSES * square(batch * (1 + k)) if k else 0)
