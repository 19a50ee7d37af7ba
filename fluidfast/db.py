"""The database helpers of aio-fluid, which fluidfast does not have."""

raise ImportError("fluidfast has no db: keep aio-fluid installed and import fluid.db from it")
