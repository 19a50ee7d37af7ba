"""The short way of a run that is queued alone: the socket, without the event loop.

``for ...: await manager.queue(...)`` is what most code does, and nearly all of its time is that of waking: a server
that has answered falls asleep within microseconds, and so does a process that waits. Here the command is written to the
socket in the ``await`` itself, and the answer looked for there, so that the next command reaches the server while it is
still awake. Anything but the expected answer goes to the connection's reader, as if it had come there.

Where that is too late, the first byte of the next command, which is the same for all of RESP, is sent as soon as there
is an answer: a server that reads it takes as long again to fall asleep (``HeadStart``).
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcmp, strlen
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from ...core._time cimport monotonic_ns
from .._short_way cimport CONFIRMED, NOT_SENT, SENT, Outcome, ShortWay
from ._resp cimport put, put_number, put_string

__all__ = ["SHORT_BYTES", "Direct", "HeadStart", "Lane"]

cdef extern from *:
    """
    #include <sys/socket.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    static inline void relax(void)
    {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }
    """
    void relax() noexcept nogil
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    ssize_t send(int fd, const void* data, size_t size, int flags) nogil
    ssize_t recv(int fd, void* data, size_t size, int flags) nogil

cdef enum:
    REQUEST_BYTES = 4096
    ANSWER_BYTES = 1024

    BLOCK = 64                          # commands: the mean of fewer is that of chance
    SETTLING = 8                        # the first ones of a block do not count
    TRIES = 4
    SHORTEST = 4                        # blocks until the other way is tried
    LONGEST = 128

cdef long long LOOK_NS = 1000           # from one look to the next: the kernel, and the core beside, have work to do

SHORT_BYTES = REQUEST_BYTES


cdef class Direct:
    """The base of a connection: its socket, and how long it is looked for answers."""

    def __cinit__(self):
        self._fd = -1

    cdef bint idle(self) except -1:
        """Whether nothing that was written is on its way, in either direction, and the socket can be written to."""
        return not (self._fd < 0 or self.closed or self._waiting or self._transport.is_closing())


@cython.final
cdef class HeadStart:
    """Whether the first byte of the next command is to be sent ahead of it.

    That saves the waking of a server that would have fallen asleep in between, which takes 20 us or more on a virtual
    machine, and costs both sides a system call. Which way is quicker depends on the machine, on what else the server
    does, and on what the caller does between two runs; so it is measured. The quicker way goes on, for twice as many
    blocks of commands each time that it wins again; then the other way is tried, and earlier when this one does worse
    for TRIES blocks in a row. A head start has to save a tenth, and is tried for up to TRIES blocks: it may take that
    long until the kernel's idea of when to sleep has changed.
    """

    def __init__(self):
        self.left = self.blocks = 1

    cpdef bint took(self, long long spent):
        """A command was sent and answered, or looked for in vain, in so many nanoseconds, with what its head start
        took. Gives whether the next one is to get one."""
        cdef bint pays
        self.count += 1
        if self.count > SETTLING:
            self.sum += spent
        if self.count < BLOCK:
            return self.given
        self.usual[self.given] = self.sum // (BLOCK - SETTLING)
        self.count = self.sum = 0
        pays = self.usual[1] != 0 and self.usual[1] * 10 < self.usual[0] * 9
        self.left -= 1
        self.bad = self.bad + 1 if pays != self.given else 0
        if self.trying:
            if pays or not self.given or self.bad == TRIES:
                self.trying = False
                self.blocks = SHORTEST if pays == self.given else min(LONGEST, 2 * self.blocks)
                self.left = self.blocks
                self.given = pays
                self.bad = 0
        elif self.left <= 0 or self.bad == TRIES:
            self.trying = True
            self.given = not self.given
            self.bad = 0
        return self.given


cdef class Lane(ShortWay):
    """The base of a channel that has a short way: what a run that is alone is sent as, and what confirms it.

    ``prepare`` says what the transaction is made of; ``take_over``, which the channel has, goes on with one that is not
    confirmed yet.
    """

    def __cinit__(self, *args, **kwargs):
        self.head_start = HeadStart()

    def prepare(self, str producer not None, bytes head not None, tuple pushes not None, bytes tail not None):
        """From here on the transaction of ``producer`` is ``head``, its number as a bulk string, what stands in
        ``pushes`` for the priority, the payload as a bulk string, and ``tail``.

        It leaves the mark's time to live as it is, which costs the server a good deal less than a new one; so it is for
        use until ``good_until`` only. Behind that the channel sends one that gives the mark its full time again.
        """
        self.producer = producer
        self.head = head
        self.pushes = pushes
        self.tail = tail

    cdef bint idle(self) except -1:
        return self.link.idle()

    def abort(self):
        self.link.abort()

    cdef Outcome alone(
        self, str producer, long long sequence, int priority, bytes payload, double at, bint look
    ) except *:
        """Write the transaction of a batch of one, and ``look`` for its answer.

        ``idle()`` may run Python code; up to the sending nothing here does. SENT: ``came`` is the part of the answer
        that has come, which the connection is to be given.
        """
        cdef Direct link = self.link
        cdef char request[REQUEST_BYTES]
        cdef char* rest
        cdef char answer[ANSWER_BYTES]
        cdef bytes push
        cdef Py_ssize_t size, room
        cdef ssize_t count
        cdef int fd = link._fd
        cdef long long began, sent, now, until, look_at
        if link.watched != producer or self.producer != producer or at >= self.good_until:
            return NOT_SENT
        push = <bytes?>self.pushes[priority]
        room = PyBytes_GET_SIZE(self.head) + PyBytes_GET_SIZE(push) + PyBytes_GET_SIZE(payload)
        if room + PyBytes_GET_SIZE(self.tail) + 100 > REQUEST_BYTES:
            return NOT_SENT
        size = put(request, 0, self.head)
        size = put_number(request, size, sequence)
        size = put(request, size, push)
        size = put_string(request, size, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        size = put(request, size, self.tail)
        rest = request + link.begun     # the first byte may be there
        size -= link.begun
        began = monotonic_ns()
        count = send(fd, rest, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count < 0:
            return NOT_SENT
        link.begun = False
        self.came = b""
        sent = now = monotonic_ns()
        if count < size:
            try:
                link._transport.write(PyBytes_FromStringAndSize(rest + count, size - count))
            except BaseException:
                link.abort()            # half a command does nothing, and nothing may follow it
                raise
        if count < size or not look or now / 1e9 < link._poll_from:
            link.watched = None         # until its answer is known
            return SENT
        until = sent + <long long>(link._look_seconds * 1e9)
        with nogil:
            while True:
                count = recv(fd, answer, ANSWER_BYTES, MSG_DONTWAIT)
                if count >= 0 or errno != EAGAIN and errno != EINTR:
                    break
                look_at = now + LOOK_NS
                while now < look_at:
                    relax()
                    now = monotonic_ns()
                if now >= until:
                    break
        if count > 0 and confirms(answer, count):
            link._poll_misses = 0
            now = monotonic_ns()
            if self.head_start.took(now - began + self.spent):
                link.begun = send(fd, b"*", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1
                self.spent = monotonic_ns() - now
            else:
                self.spent = 0
            return CONFIRMED
        link.watched = None
        if count < 0:                   # no answer in time: this took longer than it is worth
            self.head_start.took(now - began + self.spent)
            self.spent = 0
        if count > 0:
            self.came = PyBytes_FromStringAndSize(answer, count)
        return SENT                     # what does not come in time is looked for by the event loop, which counts it


cdef const char* BEFORE = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:"
cdef const char* AFTER = b"\r\n+OK\r\n"


cdef bint confirms(const char* answer, Py_ssize_t size) noexcept nogil:
    """Whether it is that of MULTI, SET, LPUSH, EXEC and WATCH, each of which did what it is there for."""
    cdef Py_ssize_t start = strlen(BEFORE), at = start, after = strlen(AFTER)
    if size <= start + after or memcmp(answer, BEFORE, start) != 0:
        return False
    while at < size and 48 <= answer[at] <= 57:
        at += 1
    return at > start and size - at == after and memcmp(answer + at, AFTER, after) == 0
