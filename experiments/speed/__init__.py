"""How fast it is, and what fits.

benchmark     a training step, its parts, ranking and input, compared with plain PyTorch
bank_growth   search and update of the memory bank from 10^4 to 10^7 rows
search_speed  queries to a search index of a million images
topologies    the training step compiled for TPU slices: memory, arithmetic, communication
"""
