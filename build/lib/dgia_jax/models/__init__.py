"""The two encoders of CLIP, and its pretrained weights.

- `dual_encoder`: `DualEncoder`, both towers in one module, and the named sizes.
- `image_tower`, `text_tower`: CLIP's vision transformer and its text transformer.
- `transformer`: the pre-norm blocks both towers stack.
- `backend`: how a device computes those blocks.
- `pixels`: CLIP's pixel normalisation.
- `pretrained`: CLIP checkpoints in and out.
"""
