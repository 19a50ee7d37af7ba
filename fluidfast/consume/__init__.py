"""The way out of a broker: claim, run, settle, and the upkeep of leases."""
