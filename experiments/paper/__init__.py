"""The paper's tables and figures; `python -m experiments.run` is the command.

settings            what a table or figure consists of
tables              declares the settings of every table and figure
additions           declares those that are not in the paper
runs                one setting with one seed: its config, folder, command and stored scores
dataset_content     identifies the content of a dataset, such as a user's own
launch              trains the missing runs in parallel processes
slots               gives each of them a core and a GPU of its own
collect             reads finished runs and takes the measurements that a table needs
measuring           takes a measurement, or reads it if it is stored
targets             the datasets that are measured on
measures            measurements on a finished run, one module each
gains               gains over a table's first setting, paired by seed
relation_precision  precision of the mined relations, from the logs of the runs
loss_sizes          reports the sizes of the losses and of their gradients
render              makes the content of each report: rows, notes and figure
figures             draws the figures
report              writes a report as Markdown, CSV, PNG and PDF
report_names        names its folder and what it is about
paper_numbers       numbers published in the paper
own_data            draws a second synthetic dataset, in the format of a user's own data
"""
