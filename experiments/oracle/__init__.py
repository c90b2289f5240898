"""Oracles: training runs that use true identities. They are upper bounds, not methods.

relations  replaces mined relations with true ones, or each caption with one of the same person
train      the command that trains with an oracle
"""
