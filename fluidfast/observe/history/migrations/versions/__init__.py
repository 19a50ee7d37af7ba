"""The revisions of the run history."""
