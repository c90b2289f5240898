"""Everything that was measured with `dgia_jax`, and the commands that measure it again.

paper    the tables and figures of the paper, and ideas beyond it
oracle   upper bounds that read true identities; never a method
speed    benchmarks against PyTorch, growth of the memory bank, search, TPU slices
results  the reports these commands wrote

`experiments/README.md` maps every table and figure to its command, settings, code and result.
"""
