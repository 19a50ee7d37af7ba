"""The way into a broker: one by one, gathered, in bulk, and the limit of a full queue."""
