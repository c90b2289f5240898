"""The paper's tables and figures; `python -m experiments.run` is the command.

tables         every table and figure as data: which settings it compares
runs           one setting with one seed: its config, folder, command and stored scores
launch         trains the missing runs in parallel processes
collect        reads finished runs and takes the measurements a table needs
measures       measurements on a finished run, one module each
gains          differences to a table's first setting, paired by seed
render         from collected results to the rows and the figure of a report
figures        the drawings
report         rows as Markdown and CSV; writes a report
paper_numbers  the numbers that the paper prints
own_data       writes a second synthetic dataset in the format of your own data
"""
