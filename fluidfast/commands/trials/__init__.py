"""The commands that try a broker: ``bench`` and ``chaos``."""
