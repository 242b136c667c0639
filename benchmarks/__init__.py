"""The comparisons quoted in the README, each one command: `python -m benchmarks.NAME`."""
