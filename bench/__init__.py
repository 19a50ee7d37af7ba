"""Benchmarks: ``python -m bench.load`` for one measurement, ``python -m bench.compare`` for all, beside the peers."""
