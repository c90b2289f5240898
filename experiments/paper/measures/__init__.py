"""Measurements on a finished run, for tables that need more than the scores in results.json.

`measure(config, folder, splits, choice)` of each module returns the content of a JSON file.

finished        opens a finished run; describes the arguments of `measure`
attention       Figure 2
cross_dataset   supplement, Table 1
masked_queries  supplement, Table 2
complexity      supplement, Table 3
tsne            supplement, Figure 1
"""
