"""The HTTP client of aio-fluid, which fluidfast does not have."""

raise ImportError(
    "fluidfast.utils has no http_client: keep aio-fluid installed and import fluid.utils.http_client from it"
)
