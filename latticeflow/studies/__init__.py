"""Studies of physics on the library's public interface: what `import latticeflow` offers and nothing below it.

Each is one short module: functions that return numbers with errors, and a plot. `benchmarks/study_*.py` runs them.
"""
