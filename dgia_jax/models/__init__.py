"""The CLIP dual encoder in Flax."""
