"""The task history of aio-fluid, which fluidfast does not have."""

raise ImportError(
    "fluidfast.scheduler has no db yet: keep aio-fluid installed and give its "
    "fluid.scheduler.db.TaskDbPlugin to manager.with_plugin"
)
