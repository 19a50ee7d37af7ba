"""One run: the call, its timeout, its retry; the thread or the process that it has."""
