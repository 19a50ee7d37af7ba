"""The FastAPI helpers of aio-fluid, which fluidfast does not have."""

raise ImportError(
    "fluidfast has no tools_fastapi: let fluidfast.task_manager_fastapi(consumer) make the application "
    "that starts and stops the consumer, or keep aio-fluid installed and import fluid.tools_fastapi from "
    "it"
)
