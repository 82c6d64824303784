# cython: language_level=3, wraparound=False, initializedcheck=False, cdivision=True, auto_pickle=False
"""The compiled form of the hot paths (`rtmpd.util.speed`).

Each name here has a pure Python form of the same name elsewhere, which is the reference: results, exceptions and their texts
are the same, and tests hold them equal. What is not ordinary is handed to Python.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EALREADY, EINPROGRESS, EINTR, errno

import os
from _socket import socket as _socket_type

cdef extern from "sys/socket.h" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t c_send "send" (int descriptor, const void *data, size_t size, int flags)

cdef extern from "Python.h":
    ctypedef PyObject *(*CFunction "PyCFunction")(PyObject *, PyObject *)
    ctypedef struct MethodDef "PyMethodDef":
        CFunction ml_meth
    ctypedef struct MethodDescriptor "PyMethodDescrObject":
        MethodDef *d_method
    bint PyCFunction_CheckExact(object)
    CFunction PyCFunction_GET_FUNCTION(object)
    PyObject *PyCFunction_GET_SELF(object)

INTERFACE = 1

# Sending -----------------------------------------------------------------------------------------------------------------

# The interpreter's lock is held meanwhile, since no send waits; nor does any code that is called here give way to other greenlets.

ctypedef object (*_NoArguments)(PyObject *self, PyObject *nothing)

cdef CFunction _SEND = NULL
cdef CFunction _FILENO = NULL


cdef CFunction _method_of_socket(str name) except NULL:
    """Return the C function of a method of the interpreter's sockets; whatever the layout of these, it knows it."""
    cdef object descriptor = _socket_type.__dict__[name]
    if type(descriptor).__name__ != "method_descriptor":
        raise ImportError(f"socket.{name} is no method in C")
    return (<MethodDescriptor *><PyObject *>descriptor).d_method.ml_meth


_SEND = _method_of_socket("send")
_FILENO = _method_of_socket("fileno")


cdef inline int _descriptor_of(object send) except -2:
    """Return the descriptor of the socket whose own method *send* is; -1: it is something else, or the socket is closed."""
    if not PyCFunction_CheckExact(send) or PyCFunction_GET_FUNCTION(send) != _SEND:
        return -1
    return (<_NoArguments>_FILENO)(PyCFunction_GET_SELF(send), NULL)


def send_each(list members not None, Py_ssize_t start, Py_ssize_t stop, object data):
    """Send *data* to each of the members from *start* to *stop*, up to one that does not accept it all.

    As `rtmpd.live.subscriber.send_each`.
    """
    cdef Py_buffer view
    cdef Py_ssize_t index, size, sent
    cdef int descriptor, error
    cdef object send, result
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    size = view.len
    try:
        for index in range(start, stop):
            send = members[index].send
            descriptor = _descriptor_of(send)
            error = EINTR
            if descriptor >= 0:
                sent = c_send(descriptor, view.buf, size, MSG_DONTWAIT | MSG_NOSIGNAL)
                if sent == size:
                    continue
                if sent >= 0:
                    return index, sent
                error = errno
            if error == EINTR:
                # Not a plain socket, or a signal has arrived: Python knows what to do.
                try:
                    result = send(data)
                except BlockingIOError:
                    return index, 0
                except OSError as raised:
                    return index, raised
                if result != size:
                    return index, result
            elif error == EAGAIN or error == EINPROGRESS or error == EALREADY:
                return index, 0
            else:
                return index, OSError(error, os.strerror(error))
    finally:
        PyBuffer_Release(&view)
    return stop, size
