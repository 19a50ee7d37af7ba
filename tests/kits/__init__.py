"""Shared by tests: servers, waiting, kits for managers, consumers, brokers and commands."""
