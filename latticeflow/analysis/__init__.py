"""From stored ensembles to numbers: `measure`, `compare`, `info` and `export`.

series (measured once, kept beside the blocks) -> measure (estimates) -> quality (ESS, acceptance, cost) ->
plots, report -> compare.
"""
