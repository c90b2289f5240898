"""Datasets: builders, the table of (image, caption) pairs, tokenizers and the input pipeline."""
