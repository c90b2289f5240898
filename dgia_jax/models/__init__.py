"""The two encoders of CLIP, OpenCLIP and SigLIP, and their pretrained weights.

- `dual_encoder`: `DualEncoder`, both towers in one module, and the named sizes.
- `families`: what CLIP, OpenCLIP and SigLIP compute differently.
- `image_tower`, `text_tower`: the vision transformer and the text transformer.
- `attention_pooling`: SigLIP's, from all patches to one feature.
- `transformer`: the pre-norm blocks both towers stack.
- `backend`: how a device computes those blocks.
- `row_major`: how activations are stored between them.
- `caption_batches`, `caption_packing`: captions without most of their padding.
- `pixels`: the normalisation of pixels.
- `embedder`: features of any number of images or texts, batch by batch.
- `pretrained`: CLIP and SigLIP checkpoints in and out.

The folder `shipped` holds the models that the package carries.
"""
