"""``fluidfast.core._machine.RunState`` as it would be written if nothing had to be fast.

    init -> queued -> running -> success | failure | aborted | rate_limited | interrupted

Three stages, and five ways to end. A run goes forward only, through every stage on its way; what is skipped is entered
at the same time. A worker can only interrupt what it runs.
"""

__all__ = ["ENDS", "STAGES", "Forbidden", "MachineModel"]

STAGES = ("init", "queued", "running")
ENDS = ("success", "failure", "aborted", "rate_limited", "interrupted")


class Forbidden(Exception):
    """The transition is not one of the machine's."""


class MachineModel:
    def __init__(self) -> None:
        self.state = "init"
        self.queued: int | None = None
        self.start: int | None = None
        self.end: int | None = None

    def move(self, state: str, now_us: int) -> tuple[str, ...]:
        """The states entered, in order."""
        if state == self.state:
            return ()
        path = self.path(state)
        for entered in path:
            if entered == "queued":
                self.queued = now_us
            elif entered == "running":
                self.start = now_us
            else:
                self.end = now_us
        self.state = state
        return path

    def path(self, state: str) -> tuple[str, ...]:
        if self.state in ENDS:
            raise Forbidden
        here = STAGES.index(self.state)
        if state in ENDS:
            if state == "interrupted" and self.state != "running":
                raise Forbidden
            return (*STAGES[here + 1 :], state)
        there = STAGES.index(state)
        if there < here:
            raise Forbidden
        return STAGES[here + 1 : there + 1]
