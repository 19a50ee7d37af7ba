"""Brokers: they keep runs safe and lease them to consumers. One package for each store."""
