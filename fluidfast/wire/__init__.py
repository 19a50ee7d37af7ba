"""A TaskRun as bytes, and back: JSON as aio-fluid writes it, and MessagePack."""
