"""The Kubernetes jobs of aio-fluid, which fluidfast does not have."""

raise ImportError(
    "fluidfast.scheduler has no k8s_job yet: a CPU-bound task runs in a child process of its worker; to "
    "run it as a Kubernetes job keep its consumer on aio-fluid"
)
