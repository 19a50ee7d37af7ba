"""Runs, tasks, schedules, events and workers. No I/O."""
