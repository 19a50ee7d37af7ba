# Stints: a slot lets a thread run plain functions in its place. Included by _slots.pyx.
#
# The thread serves itself from what is ready, and gives ends back in batches: a run needs no turn of the event loop,
# and no wake-up of its own. Both sides touch the fields of a slot and of its stint. They do so in steps without a call
# of Python code, within which the thread that holds the GIL keeps it: such a step happens as a whole.
#
# Functions that end at once gain nothing from many threads, which would only fight for the GIL and starve the event
# loop. So one stint, the runner, runs all of those. Any other function gets a slot and a thread, and its thread goes on
# by itself as long as the event loop keeps up with the ends.

# in the place of a run's exception
cdef object LOST = object()             # its lease was lost before it started
cdef object ASKS = object()             # its function has set a state


@cython.final
@cython.auto_pickle(False)
cdef class Stint:
    """A thread's time in a slot, as work for ``execute/threads.py``. It begins with ``first``, which the slot holds.

    Attributes: ``waiter``: done when the slot is the event loop's again; ``task``: of the last run; ``began``: when
    that started, 0.0 before; ``ended``: set once the thread is free; ``rest``: the awaitable that its function
    returned, if it did, which the slot still has to await.
    """

    def __init__(self, Slots slots not None, Slot slot not None, Claimed first not None):
        self.slots = slots
        self.known = slots.known_of(first.run.task)
        self.held_slot = slot
        self.first = first
        self.task = first.run.task
        self.waiter = asyncio.get_running_loop().create_future()
        self.slot = ""
        self.since = monotonic()
        self.seen = -1
        self.context = slots.context.copy()
        self.context.run(SLOT.set, (slots._broker, slot))

    # -- in the thread

    def run(self) -> None:
        """Run functions as long as there are some for this thread."""
        cdef Claimed held = self.first
        self.first = None
        if self.left:
            return
        try:
            while held is not None:
                held = self.work(held)
        except BaseException as exc:  # ours: the functions' are caught
            self.error = exc
        self.slots.step_down(self)

    cdef Claimed work(self, Claimed held):
        """Run one function. Gives what is to be run next in this thread, or None."""
        cdef Slots slots = self.slots
        cdef Slot slot = self.held_slot
        cdef Lease lease = held.lease
        cdef TaskRun run = held.run
        cdef Known known = self.known
        cdef double now = monotonic()
        cdef object error = None
        # it starts: a step as a whole
        self.task = run.task
        self.began = self.since = now
        slots.take(lease)
        if lease.lost:
            slot.held = None
            slots.give(held, LOST)
            return slots.next_of(self)
        slot.held = held
        slot.deadline = slot.cancel_at = now + known.timeout
        run.advance(RUNNING, now_us())
        if slot.deadline < slots.sweep_at:
            slots.ask_for_sweep()
        try:
            result = self.call(known.task.executor, run)
            if result is not None:
                if hasattr(result, "__await__"):  # as partials, lambdas and wrappers of coroutine functions do
                    self.rest = result
                    return None
                refuse_unrun(result)
                result = None
        except BaseException as exc:
            error = exc
        now = monotonic()
        # it ends: a step as a whole
        if self.left:  # its run has ended without it
            return None
        known.pace += (min(now - self.began, MOST_PACE) - known.pace) * 0.1
        slot.held = None
        if error is None and run._state < SUCCESS:
            run.advance(SUCCESS, now_us())
            slots.give(held, None)
        else:
            slots.give(held, ASKS if error is None else error)
        return slots.next_of(self)

    cdef object call(self, object function, TaskRun run):
        """Call a function in a context of its run."""
        context = PyContext_Copy(self.context)
        PyContext_Enter(context)
        try:
            if self.slots.follows:
                PyContextVar_Set(current_run, run)
            return call_in_thread(function, run)
        finally:
            PyContext_Exit(context)

    # -- in the event loop

    def interrupt(self, held) -> bool:
        """Let the slot have this run back, for it to be cancelled. False: its function has ended."""
        if self.left:
            return True
        if self.held_slot.held is not held:
            return False
        self.left = True
        return True

    def withdraw(self) -> bool:
        """Stop waiting for the thread. Returns whether it is in a function that goes on."""
        self.left = True
        return self.began > 0 and not self.ended and self.held_slot.held is not None

    def outcome(self) -> None:
        """Raise what was wrong with the stint itself."""
        if self.error is not None:
            raise self.error

    @property
    def due(self) -> float:
        """When the time of its run is up (monotonic seconds). It does not run before a thread has begun."""
        return (self.began or monotonic()) + self.task.timeout_seconds
