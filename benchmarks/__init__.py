"""Measurements: `python -m benchmarks.NAME`. Raw results are in `benchmarks/results/`."""
