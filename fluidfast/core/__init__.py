"""What a run, a task, a schedule, an event and a worker are. No I/O."""
