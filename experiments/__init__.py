"""Experiments with `dgia_jax`: the commands that measure, and the reports that they wrote.

run      the command for all tables and figures
paper    the tables and figures of the paper, and ideas beyond it
oracle   upper bounds that use true identities; they are not methods
speed    benchmarks against PyTorch, growth of the memory bank, search, TPU slices
results  the reports

`experiments/README.md` maps every table and figure to its command, settings, code and result.
"""
