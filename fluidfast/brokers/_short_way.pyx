"""``ShortWay``: a channel that can send a run that is alone in the ``await`` itself, without the event loop."""

__all__ = ["ShortWay"]


cdef class ShortWay:
    """The contract of such a channel. The outbox asks ``idle()``, then sends a batch of one by ``alone()``; one that is
    not confirmed yet goes on by ``take_over``."""

    cdef bint idle(self) except -1:
        """Return True if nothing is on its way, in either direction, and a command can be written."""
        raise NotImplementedError

    cdef Outcome alone(
        self, str producer, long long sequence, int priority, bytes payload, double at, bint look
    ) except *:
        """Send a batch of one, and ``look`` for its answer. ``at``: the time, in seconds of the monotonic clock.

        The channel has to be ``idle()``. NOT_SENT: nothing was done. SENT: it has left, and ``take_over`` is to be
        called. CONFIRMED: it is queued.
        """
        raise NotImplementedError

    def take_over(self, batch, confirm):
        """Go on with a batch that ``alone`` has sent: ``confirm`` is called when it is known what became of it."""
        raise NotImplementedError

    def abort(self):
        """Give the connection up: what is on its way is lost."""
        raise NotImplementedError
