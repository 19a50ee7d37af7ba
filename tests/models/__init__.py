"""Slow, plain Python models of the compiled modules: the oracles of their property tests."""
