cdef enum Outcome:
    NOT_SENT, SENT, CONFIRMED

cdef class ShortWay:
    cdef bint idle(self) except -1
    cdef Outcome alone(
        self, str producer, long long sequence, int priority, bytes payload, double at, bint look
    ) except *
