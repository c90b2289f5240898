"""Upper bounds: training runs that read true identities. Never a method.

relations  true relations in place of mined ones, or a caption of the same person per image
train      the command that trains such a run
"""
