"""From stored ensembles to numbers: `measure`, `compare`, `verify`, `info` and `export`.

measured (primaries of every block, once) -> series (walked piece by piece) -> estimates -> measure; quality (ESS,
acceptance, cost), plots, report -> compare.
"""
