"""Speed of training, association, ranking and input, beside a plain PyTorch implementation."""
