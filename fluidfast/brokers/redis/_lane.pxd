from .._short_way cimport Outcome, ShortWay

cdef class Direct:
    cdef public bint closed
    cdef public object _transport
    cdef public object _waiting             # who waits for replies, in their order
    cdef public double _oldest              # when the first of them was sent, or something came
    cdef public double _poll_seconds
    cdef public double _poll_from           # when it is looked for answers again
    cdef public int _poll_misses            # answers in a row that did not come in time
    cdef public double _look_seconds        # how long it is looked for an answer in an await
    cdef public int _fd
    cdef public object watched              # whose mark nobody wrote since the server watches it for this connection
    cdef public Py_ssize_t turn             # transactions and scripts of producers that were sent
    cdef public bint begun                  # the first byte of the next command has been sent

    cdef bint idle(self) except -1

cdef class HeadStart:
    cdef readonly bint given                # to the next command
    cdef long long usual[2]                 # nanoseconds that one takes, without and with it; 0: not known
    cdef bint trying                        # the other way
    cdef int bad                            # blocks in a row in which the other way seemed quicker
    cdef int left                           # blocks until the other way is tried
    cdef int blocks                         # how many those were
    cdef int count                          # of commands in this block
    cdef long long sum                      # of nanoseconds

    cpdef bint took(self, long long spent)

cdef class Lane(ShortWay):
    cdef public Direct link
    cdef readonly HeadStart head_start
    cdef long long spent                    # nanoseconds, on the head start of the next command
    cdef readonly str producer              # whose mark the pieces are for
    cdef bytes head
    cdef tuple pushes
    cdef bytes tail
    cdef public double good_until           # seconds (monotonic)
    cdef public bytes came                  # of the answer, when it is not the one that confirms
