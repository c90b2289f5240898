"""Benchmark of training, association, ranking and input against plain PyTorch.

Each implementation runs in its own process. Their outputs are checked for equality before timing.

__main__           flags
suite              from flags to files: runs every part in order
workload           the training step that is timed, on made-up arrays
contenders         what is compared, and how one that fails is reported
agreement          do all implementations compute the same?
workers            processes of the implementations, measured in turn
jax_step           our step and its parts
torch_step         the PyTorch step and its parts, with torch_model, torch_views, torch_association
ranking            ranking a gallery, ours and in PyTorch
input_speed        the input pipeline alone
device_time        time of an accelerator by kind of kernel, and the largest kernels
made_up_images     images for the pipeline of the made-up dataset
timing             clocks, memory, summaries
report             measurements as tables
targets            which targets are met
text_table         one table, for the terminal and for Markdown
"""
