"""The training step compiled for devices that are not attached: does it fit, what does it cost?

- `compile_report`: memory, arithmetic and traffic of the compiled step; `--mode compile`.
- `topology`: descriptions of TPU slices.
- `hlo_collectives`: the exchanges between devices, read from a compiled program.
- `hlo_estimates`: cycles and padded products, as the TPU compiler expects them.
- `flops`: the arithmetic of a step, counted analytically, and the peak of chips.
"""
