"""Alembic's scripts for the run history."""
