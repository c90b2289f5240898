"""Measurements on a finished run, for tables that need more than its scores.

Each module has `measure(config, folder, splits, choice)`, which returns plain data for a JSON file.

finished        opens a finished run
attention       Figure 2
cross_dataset   supplement, Table 1
masked_queries  supplement, Table 2
complexity      supplement, Table 3
tsne            supplement, Figure 1
"""
