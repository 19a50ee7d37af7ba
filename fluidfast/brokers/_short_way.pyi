from .contract import Confirm, EnqueueBatch

__all__ = ["ShortWay"]

class ShortWay:
    """The contract of a channel that can send a run that is alone in the ``await`` itself, without the event loop."""

    def __call__(self, batch: EnqueueBatch, confirm: Confirm) -> None:
        """Send a batch; ``confirm`` is called when it is known what became of it."""

    def take_over(self, batch: EnqueueBatch, confirm: Confirm) -> None:
        """Go on with a batch that has left by the short way: ``confirm`` is called when it is known what became of
        it."""

    def abort(self) -> None:
        """Give the connection up: what is on its way is lost."""
