# cython: language_level=3, wraparound=False, initializedcheck=False, cdivision=True, auto_pickle=False
"""The compiled form of the hot paths (`rtmpd.util.speed`).

Each name here has a pure Python form of the same name elsewhere, which is the reference: results, exceptions and their texts
are the same, and tests hold them equal. What is not ordinary is handed to Python.
"""

cimport cython
from cpython cimport array
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject, PyObject_Hash, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.errno cimport EAGAIN, EALREADY, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import os
import sys
from _socket import socket as _socket_type

from rtmpd.errors import LimitExceeded, RemoteProtocolError

cdef extern from "sys/socket.h" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t c_send "send" (int descriptor, const void *data, size_t size, int flags)
    ssize_t c_recv "recv" (int descriptor, void *data, size_t size, int flags)

cdef extern from "Python.h":
    ctypedef PyObject *(*CFunction "PyCFunction")(PyObject *, PyObject *)
    ctypedef struct MethodDef "PyMethodDef":
        CFunction ml_meth
    ctypedef struct MethodDescriptor "PyMethodDescrObject":
        MethodDef *d_method
    ctypedef struct PyListObject:
        PyObject **ob_item
    object PyType_GenericAlloc(PyTypeObject *, Py_ssize_t)
    bint PyCFunction_CheckExact(object)
    CFunction PyCFunction_GET_FUNCTION(object)
    PyObject *PyCFunction_GET_SELF(object)

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define rtmpd_prefetch(address) __builtin_prefetch(address)
    #else
    #define rtmpd_prefetch(address) ((void)(address))
    #endif
    """
    void _prefetch_line "rtmpd_prefetch" (const void *address) noexcept nogil

INTERFACE = 20

# Memory that will be needed ----------------------------------------------------------------------------------------------

# Between two messages of a stream come those of all others, and what the next one needs is no longer in the near caches. So it
# is remembered where the last one has found things, and these are asked for before the system call that comes first. The
# addresses are never read: what was there may be gone.

cdef enum:
    _LINE = 64


cdef struct _Touched:
    const void *source
    const void *timeline
    const void *track
    const void *stream
    const void *append
    const void *stats
    const void *log
    const void *page
    const void *buffer
    const void *end
    const void *starts
    const void *starts_end
    const void *kinds
    const void *kinds_end
    const void *growth
    const void *fanout
    const void *reader
    const void *chunk_stream


cdef _Touched _touched  # by the last frame


cdef inline void _prefetch(const void *address, int lines) noexcept:
    cdef int line
    for line in range(lines):
        _prefetch_line(<const char *>address + line * _LINE)


cdef void _prefetch_touched(const _Touched *each) noexcept:
    """Ask for what a frame will probably need."""
    _prefetch(each.reader, 5)
    _prefetch(each.chunk_stream, 2)
    _prefetch(each.source, 2)
    _prefetch(each.timeline, 2)
    _prefetch(each.track, 1)
    _prefetch(<const char *>each.stream - _LINE, 2)
    _prefetch(each.append, 1)
    _prefetch(each.stats, 1)
    _prefetch(each.log, 3)
    _prefetch(each.page, 2)
    _prefetch(each.buffer, 1)
    _prefetch(each.end, 2)
    _prefetch(each.starts, 1)
    _prefetch(each.starts_end, 1)
    _prefetch(each.kinds, 1)
    _prefetch(each.kinds_end, 1)
    _prefetch(each.growth, 1)
    _prefetch(each.fanout, 3)

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


cdef struct _Socket:
    # The beginning of the interpreter's sockets, if `_sockets_begin_so` finds it confirmed.
    PyObject head
    int descriptor


cdef bint _sockets_begin_so() except -1:
    """Return whether sockets have the expected layout: open ones and a closed one."""
    cdef object first = _socket_type(), second = _socket_type()
    cdef bint found
    try:
        found = all((<_Socket *><PyObject *>each).descriptor == each.fileno() for each in (first, second))
    finally:
        first.close()
        second.close()
    return found and (<_Socket *><PyObject *>first).descriptor == -1


cdef bint _HAS_DESCRIPTORS = _sockets_begin_so()


cdef inline int _descriptor_of(object send) except -2:
    """Return the descriptor of the socket whose own method *send* is; -1: it is something else, or the socket is closed."""
    if not PyCFunction_CheckExact(send) or PyCFunction_GET_FUNCTION(send) != _SEND:
        return -1
    if _HAS_DESCRIPTORS:
        return (<_Socket *>PyCFunction_GET_SELF(send)).descriptor
    return (<_NoArguments>_FILENO)(PyCFunction_GET_SELF(send), NULL)


cdef class SubscriberState:
    """What an ordinary pass needs of a subscriber. As `rtmpd.live.subscriber.SubscriberState`."""

    cdef public object send


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


# Chunks ------------------------------------------------------------------------------------------------------------------

cdef enum:
    _ABORT = 2
    _EXTENDED = 0xFFFFFF
    _NEAR_STREAMS = 16  # chunk streams that are found without a dict; those of encoders are
    _FIRST_PAYLOAD = 512
    _FRAMES = 64  # FRAMES_LIMIT

cdef Py_ssize_t _MAX_CHUNK_SIZE = 0x7FFFFFFF

# Types of rtmpd.protocol.chunk, which imports this module: known when the first reader is made.
cdef object _RawMessage = None
cdef object _BufferedLimit, _ChunkStreamState, _ReaderState
cdef Py_ssize_t _GROWTH_BYTES


cdef int _import_chunk() except -1:
    global _RawMessage, _BufferedLimit, _ChunkStreamState, _ReaderState, _GROWTH_BYTES
    from rtmpd.protocol import chunk

    _BufferedLimit, _ChunkStreamState, _ReaderState = chunk.BufferedLimit, chunk.ChunkStreamState, chunk.ReaderState
    _GROWTH_BYTES = chunk.GROWTH_BYTES
    _RawMessage = chunk.RawMessage
    return 0


cdef inline uint32_t _word(const uint8_t *data) noexcept:
    return <uint32_t>data[0] << 24 | <uint32_t>data[1] << 16 | <uint32_t>data[2] << 8 | data[3]


cdef inline uint32_t _three(const uint8_t *data) noexcept:
    return <uint32_t>data[0] << 16 | <uint32_t>data[1] << 8 | data[2]


cdef inline uint32_t _little_word(const uint8_t *data) noexcept:
    return <uint32_t>data[3] << 24 | <uint32_t>data[2] << 16 | <uint32_t>data[1] << 8 | data[0]


cdef struct _Input:
    const uint8_t *data
    Py_ssize_t position
    Py_ssize_t end


cdef struct _Found:
    # A message. Its payload is a part of the input, or in memory that is to be freed.
    uint32_t timestamp
    uint32_t message_stream_id
    uint8_t type_id
    const uint8_t *payload
    Py_ssize_t length
    uint8_t *memory


cdef struct _Batch:
    # The message that the beginning of the input completes, and one for each chunk behind it.
    _Found[65] found
    int count


cdef enum _Step:
    _NOTHING  # a chunk that completes no message
    _MESSAGE
    _HEADER_MISSING  # the input ends inside the header at its position
    _PAYLOAD_MISSING  # the input has ended inside the payload


cdef class _ChunkStream:
    """The state of one chunk stream: the last header, and the message being assembled."""

    cdef uint32_t csid, timestamp, delta, length, message_stream_id, field
    cdef uint8_t type_id
    cdef bint extended
    cdef bint begun  # a message has begun, and is incomplete; else there is no payload
    cdef uint8_t *payload
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity

    def __dealloc__(self):
        free(self.payload)

    cdef int add(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Add to the payload. Memory grows with what has arrived, whatever the length says."""
        cdef Py_ssize_t needed = self.size + size, capacity
        cdef void *larger
        self.begun = True
        if needed > self.capacity:
            capacity = max(needed, min(needed + needed // 2 + _FIRST_PAYLOAD, <Py_ssize_t>self.length))
            larger = realloc(self.payload, capacity)
            if larger == NULL:
                raise MemoryError
            self.payload = <uint8_t *>larger
            self.capacity = capacity
        if size:
            memcpy(self.payload + self.size, data, size)
            self.size += size
        return 0

    cdef void drop(self) noexcept:
        """Drop the payload."""
        free(self.payload)
        self.payload = NULL
        self.begun = False
        self.size = self.capacity = 0


cdef class ChunkReader:
    """Assembles messages from chunks. As `rtmpd.protocol.chunk.ChunkReader`."""

    cdef public Py_ssize_t chunk_size, message_limit_bytes, chunk_stream_limit, dropped_messages
    cdef public bint unread
    cdef readonly object buffered_limit
    cdef public object on_growth
    cdef readonly bint grown
    cdef Py_ssize_t _growth_at
    cdef Py_ssize_t _look_at  # the lower one of limit and growth
    cdef Py_ssize_t _buffered_limit_bytes
    cdef dict _streams
    cdef PyObject *_near[_NEAR_STREAMS]
    cdef bytes _tail
    cdef _ChunkStream _current
    cdef Py_ssize_t _chunk_left
    cdef Py_ssize_t _buffered

    def __cinit__(self, *args, **kwargs):
        # Memory is zeroed before this.
        self._streams = {}
        self._tail = b""

    def __init__(self, Py_ssize_t message_limit_bytes=8 << 20, Py_ssize_t chunk_stream_limit=256):
        if _RawMessage is None:
            _import_chunk()
        self.chunk_size = 128
        self.message_limit_bytes = message_limit_bytes
        self.chunk_stream_limit = chunk_stream_limit
        self.dropped_messages = 0
        self.unread = False
        self.grown = False
        self._growth_at = _GROWTH_BYTES
        self.limit_buffered()

    @classmethod
    def from_state(cls, state, message_limit_bytes=8 << 20, chunk_stream_limit=256):
        """Return a reader that continues where another one was."""
        cdef ChunkReader reader
        cdef _ChunkStream stream
        state.check()
        reader = cls(message_limit_bytes, chunk_stream_limit)
        for csid, timestamp, delta, length, type_id, message_stream_id, extended, payload in state.streams:
            stream = reader._add(csid)
            stream.timestamp, stream.delta, stream.length = timestamp, delta, length
            stream.type_id, stream.message_stream_id = type_id, message_stream_id
            stream.extended, stream.field = extended is not None, extended or 0
            if payload is not None:
                stream.add(<bytes>payload, len(payload))
                reader._buffered += stream.size
        reader.chunk_size, reader.dropped_messages = state.chunk_size, state.dropped_messages
        reader._tail, reader.unread, reader._chunk_left = state.tail, state.unread, state.chunk_left
        reader._current = reader._streams[state.current] if state.current is not None else None
        return reader

    def export_state(self):
        """Return the state, for `from_state`."""
        cdef _ChunkStream stream
        cdef list streams = []
        for csid in sorted(self._streams):
            stream = self._streams[csid]
            streams.append(
                _ChunkStreamState(
                    csid,
                    stream.timestamp,
                    stream.delta,
                    stream.length,
                    stream.type_id,
                    stream.message_stream_id,
                    stream.field if stream.extended else None,
                    PyBytes_FromStringAndSize(<char *>stream.payload, stream.size) if stream.begun else None,
                )
            )
        current = self._current.csid if self._chunk_left else None
        tail, left = self._tail, self._chunk_left
        return _ReaderState(self.chunk_size, tuple(streams), current, left, tail, self.unread, self.dropped_messages)

    @property
    def buffered_bytes(self):
        """The bytes held of incomplete messages."""
        return self._buffered + len(self._tail)

    def limit_buffered(self, limit_bytes=0, name="bytes of incomplete messages"):
        """Limit the bytes of incomplete messages, whatever length they have announced."""
        self._buffered_limit_bytes = limit_bytes or self.message_limit_bytes + (1 << 20)
        self.buffered_limit = _BufferedLimit(name, self._buffered_limit_bytes)
        self._look_at = min(self._buffered_limit_bytes, self._growth_at)

    def watch_growth(self):
        """Call `on_growth` for bytes of incomplete messages that come from now on."""
        self.grown = False
        self._growth_at = self._buffered + _GROWTH_BYTES
        self._look_at = min(self._buffered_limit_bytes, self._growth_at)

    def abort(self, csid):
        """Drop the incomplete message on *csid*, if there is one (section 5.4.2)."""
        cdef _ChunkStream stream = self._streams.get(csid)
        if stream is not None and stream.begun:
            self._buffered -= stream.size
            stream.drop()

    def feed(self, data, chunk_limit=sys.maxsize):
        """Process bytes from the peer; return the messages that they complete, in order."""
        cdef list messages = []
        cdef Py_buffer view
        if self._tail:
            data = self._tail + data
            self._tail = b""
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._feed(<const uint8_t *>view.buf, view.len, chunk_limit, messages, NULL)
        finally:
            PyBuffer_Release(&view)
        return messages

    def feed_frames(self, data, Py_ssize_t chunk_limit, dict sources not None):
        """Process bytes from the peer; hand ordinary frames that come first to their sources."""
        cdef Py_buffer view
        cdef list messages = []
        cdef int handed
        if chunk_limit > _FRAMES:
            raise ValueError(f"expected at most {_FRAMES} chunks, found {chunk_limit}")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            handed = self._feed_frames(<const uint8_t *>view.buf, view.len, chunk_limit, sources, messages)
        finally:
            PyBuffer_Release(&view)
        return handed, messages

    cdef int _feed_frames(
        self, const uint8_t *data, Py_ssize_t size, Py_ssize_t chunk_limit, dict sources, list messages
    ) except -1:
        """Do what `feed_frames` does; return how many frames were handed over, and add the other messages to the list."""
        cdef _Batch batch
        cdef _Found *found
        cdef int handed = 0, index
        cdef object source
        cdef bytes joined
        if self._tail:
            joined = self._tail + PyBytes_FromStringAndSize(<char *>data, size)
            self._tail = b""
            data, size = <const uint8_t *>PyBytes_AS_STRING(joined), PyBytes_GET_SIZE(joined)
        batch.count = 0
        try:
            # First all of it is read: if there is an error in it, nothing is handed over.
            self._feed(data, size, chunk_limit, None, &batch)
            while handed < batch.count:
                found = &batch.found[handed]
                if found.type_id != _VIDEO and found.type_id != _AUDIO:
                    break
                source = sources.get(found.message_stream_id)
                if type(source) is not _Source and not _is_source(source):
                    break
                if not (<SourceState>source)._take(found.type_id, found.timestamp, found.payload, found.length, None):
                    break
                handed += 1
            for index in range(handed, batch.count):
                messages.append(_take(&batch.found[index]))
        finally:
            for index in range(batch.count):
                free(batch.found[index].memory)
        return handed

    cdef int _feed(
        self, const uint8_t *data, Py_ssize_t end, Py_ssize_t chunk_limit, list messages, _Batch *batch
    ) except -1:
        """Read chunks. Messages are added to the list, or to the batch if there is one, whose owner frees their memory."""
        cdef _Input given
        cdef _Found found
        cdef _ChunkStream stream
        cdef Py_ssize_t left
        cdef int step
        given.data, given.position, given.end = data, 0, end
        if self._chunk_left:
            # The last call ended inside this chunk.
            stream = self._current
            if not stream.begun:
                raise AssertionError
            left = min(end, self._chunk_left)
            stream.add(data, left)
            given.position = left
            self._chunk_left -= left
            self._buffered += left
            if self._chunk_left:
                self._check_buffered()
                return 0
            if stream.size == stream.length and self._finish(stream, &found) == _MESSAGE:
                if batch != NULL:
                    batch.found[batch.count] = found
                    batch.count += 1
                else:
                    messages.append(_take(&found))
        self.unread = False
        while given.position < end:
            if chunk_limit <= 0:
                self.unread = True
                break
            chunk_limit -= 1
            step = self._chunk(&given, &found)
            if step == _MESSAGE:
                if batch != NULL:
                    batch.found[batch.count] = found
                    batch.count += 1
                else:
                    messages.append(_take(&found))
            elif step != _NOTHING:
                break
        # Complete chunks and incomplete payloads have been taken; what is left is a header, or unread.
        if given.position < end:
            self._tail = PyBytes_FromStringAndSize(<char *>data + given.position, end - given.position)
        self._check_buffered()
        return 0

    cdef int _chunk(self, _Input *given, _Found *found) except -1:
        """Process one chunk; return a `_Step`. The position stays at its header if that has not arrived as a whole."""
        cdef const uint8_t *data = given.data
        cdef Py_ssize_t start = given.position, position = start + 1, end = given.end, left, size
        cdef const uint8_t *header
        cdef int fmt = data[start] >> 6
        cdef uint32_t csid = data[start] & 63, field
        cdef _ChunkStream stream
        if csid < 2:
            position += 1 + csid
            if position > end:
                return _HEADER_MISSING
            csid = 64 + (data[start + 1] if csid == 0 else data[start + 1] + (<uint32_t>data[start + 2] << 8))
        stream = self._find(csid)
        if stream is None:
            stream = self._open(csid, fmt)

        if fmt == 3:
            if stream.extended:
                size = _repeated_field(data + position, end - position, stream)
                if size < 0:
                    return _HEADER_MISSING
                position += size
            if not stream.begun:
                stream.timestamp += stream.delta
        elif not stream.begun:
            header = data + position
            position += 11 - 4 * fmt
            if position > end:
                return _HEADER_MISSING
            field = _three(header)
            if field == _EXTENDED:
                position += 4
                if position > end:
                    return _HEADER_MISSING
                field = stream.field = _word(data + position - 4)
                stream.extended = True
            else:
                stream.extended = False
            stream.delta = field
            if fmt == 0:
                stream.timestamp = field
                stream.message_stream_id = _little_word(header + 7)
            else:
                stream.timestamp += field
            if fmt != 2:
                stream.length = _three(header + 3)
                stream.type_id = header[6]
            if stream.length > self.message_limit_bytes:
                raise LimitExceeded("message_limit_bytes", self.message_limit_bytes, stream.length)
        else:
            size = self._header_inside(data + position, end - position, fmt, stream)
            if size < 0:
                return _HEADER_MISSING
            if size == 0:
                # The begun message was dropped: the header begins another one.
                return _NOTHING
            position += size

        # The payload of the chunk.
        left = stream.length - stream.size
        if left > self.chunk_size:
            left = self.chunk_size
        elif not stream.begun and left <= end - position:
            # The usual case: the whole message in one chunk.
            given.position = position + left
            found.payload, found.length, found.memory = data + position, left, NULL
            return self._found(stream, found)
        size = min(left, end - position)
        stream.add(data + position, size)
        self._buffered += size
        given.position = position + size
        if size < left:
            self._current = stream
            self._chunk_left = left - size
            return _PAYLOAD_MISSING
        return self._finish(stream, found) if stream.size == stream.length else _NOTHING

    cdef inline _ChunkStream _find(self, uint32_t csid):
        if csid < _NEAR_STREAMS:
            return <_ChunkStream>self._near[csid] if self._near[csid] != NULL else None
        return self._streams.get(csid)

    cdef _ChunkStream _add(self, uint32_t csid):
        cdef _ChunkStream stream = _ChunkStream.__new__(_ChunkStream)
        stream.csid = csid
        self._streams[csid] = stream
        if csid < _NEAR_STREAMS:
            self._near[csid] = <PyObject *>stream
        return stream

    cdef _ChunkStream _open(self, uint32_t csid, int fmt):
        # librtmp answers a ping with a type 1 header as the first one of its csid; the message stream id is then 0.
        if fmt > 1:
            raise RemoteProtocolError(f"csid {csid}: expected a type 0 header as the first one, found type {fmt}")
        if len(self._streams) >= self.chunk_stream_limit:
            raise LimitExceeded("chunk_stream_limit", self.chunk_stream_limit, len(self._streams) + 1)
        return self._add(csid)

    cdef int _check_buffered(self) except -1:
        if self._buffered <= self._look_at:
            return 0
        if self._buffered > self._buffered_limit_bytes:
            name, limit_bytes = self.buffered_limit
            raise LimitExceeded(name, limit_bytes, self._buffered)
        if self._buffered > self._growth_at:
            self.watch_growth()
            self.grown = True
            if self.on_growth is not None:
                self.on_growth()
        return 0

    cdef Py_ssize_t _header_inside(self, const uint8_t *header, Py_ssize_t available, int fmt, _ChunkStream stream):
        """Process a header of type 0, 1 or 2 inside a message; return its size, 0 if the message was dropped, or -1."""
        cdef Py_ssize_t size = 11 - 4 * fmt
        cdef uint32_t field
        if size > available:
            return -1
        field = _three(header)
        if (
            (fmt != 2 and (_three(header + 3) != stream.length or header[6] != stream.type_id))
            or (fmt == 0 and _little_word(header + 7) != stream.message_stream_id)
        ):
            self._buffered -= stream.size
            stream.drop()
            self.dropped_messages += 1
            return 0
        if field == _EXTENDED:
            if size + 4 > available:
                return -1
            stream.field = _word(header + size)
            size += 4
        stream.extended = field == _EXTENDED
        return size

    cdef int _finish(self, _ChunkStream stream, _Found *found) except -1:
        """End the assembly of a message; return a `_Step`."""
        found.payload, found.length, found.memory = stream.payload, stream.size, stream.payload
        self._buffered -= stream.size
        stream.payload = NULL
        stream.drop()
        return self._found(stream, found)

    cdef int _found(self, _ChunkStream stream, _Found *found) except -1:
        """Complete the description of a message, or apply it if it is for the chunk layer; return a `_Step`."""
        if stream.type_id <= _ABORT:
            self._chunk_control(stream.type_id, _take_payload(found))
            return _NOTHING
        found.type_id, found.timestamp, found.message_stream_id = stream.type_id, stream.timestamp, stream.message_stream_id
        _touched.chunk_stream = <PyObject *>stream
        return _MESSAGE

    cdef int _chunk_control(self, int type_id, bytes payload) except -1:
        cdef uint32_t value
        if type_id == 0:
            raise RemoteProtocolError("found message type 0, which does not exist: the chunk stream is out of step")
        if len(payload) < 4:
            raise RemoteProtocolError(f"control message of type {type_id}: expected 4 bytes, found {len(payload)}")
        value = _word(payload)
        if type_id == _ABORT:
            self.abort(value)
        elif 1 <= value <= _MAX_CHUNK_SIZE:
            self.chunk_size = value
        else:
            raise RemoteProtocolError(f"Set Chunk Size: expected 1 to {_MAX_CHUNK_SIZE} bytes, found {value}")
        return 0


cdef Py_ssize_t _repeated_field(const uint8_t *data, Py_ssize_t available, _ChunkStream stream) noexcept:
    """Detect whether a type 3 chunk repeats the extended timestamp: return the bytes to skip, or -1 if that is open."""
    cdef uint32_t[2] candidates = [stream.field & 0x7FFFFFFF, stream.timestamp & 0x7FFFFFFF]
    cdef uint32_t seen
    cdef int candidate, unseen
    if available >= 4:
        seen = _word(data) & 0x7FFFFFFF
        return 4 if seen == candidates[0] or seen == candidates[1] else 0
    # Fewer than four bytes decide only if they can't be the start of either value.
    if available == 0:
        return -1
    seen = (data[0] & 0x7F) << 16
    if available > 1:
        seen |= <uint32_t>data[1] << 8
    if available > 2:
        seen |= data[2]
    unseen = 8 * (3 - <int>available)
    for candidate in range(2):
        if candidates[candidate] >> 8 >> unseen == seen >> unseen:
            return -1
    return 0


cdef bytes _take_payload(_Found *found):
    """Return the payload of a message, and free its memory."""
    try:
        return PyBytes_FromStringAndSize(<char *>found.payload, found.length)
    finally:
        free(found.memory)
        found.memory = NULL


cdef object _take(_Found *found):
    """Return a message as a `RawMessage`, and free its memory."""
    cdef object payload = _take_payload(found)
    cdef object timestamp = found.timestamp, message_stream_id = found.message_stream_id, type_id = found.type_id
    cdef object message
    # As tuple.__new__ makes an object of a subclass.
    message = PyType_GenericAlloc(<PyTypeObject *>_RawMessage, 4)
    Py_INCREF(type_id)
    PyTuple_SET_ITEM(message, 0, type_id)
    Py_INCREF(message_stream_id)
    PyTuple_SET_ITEM(message, 1, message_stream_id)
    Py_INCREF(timestamp)
    PyTuple_SET_ITEM(message, 2, timestamp)
    Py_INCREF(payload)
    PyTuple_SET_ITEM(message, 3, payload)
    return message


# Appending ---------------------------------------------------------------------------------------------------------------

cdef enum:
    _AUDIO = 8
    _VIDEO = 9
    _DATA = 18
    _FRAME = 0  # Kind.FRAME
    _KEYFRAME = 1  # Kind.KEYFRAME
    _MAX_MESSAGE_SIZE = 0xFFFFFF
    _STEP_LIMIT_MS = 2000
    _SHORT_HEADER = 12
    _FAST_MS = 100
    _SLOW_MS = 400

cdef int64_t _HALF = 0x80000000
cdef int64_t _WORD = 0xFFFFFFFF

# The methods that have the rules, for everything that is not ordinary.
cdef object _pure_append, _pure_stamp, _pure_video, _pure_audio
cdef object _pure_add, _pure_note_growth, _pure_deliver_if_small, _pure_append_copy

# Of rtmpd.media.timestamps, which imports this module: known when the first source is made. A subclass may have other rules.
cdef object _Timeline = None


def hand_over(str name, method):
    """Take the pure form of a method of a base, by ``class.method``."""
    global _pure_append, _pure_stamp, _pure_video, _pure_audio
    global _pure_add, _pure_note_growth, _pure_deliver_if_small, _pure_append_copy
    if name == "LogState.append":
        _pure_append = method
    elif name == "TimelineState.stamp":
        _pure_stamp = method
    elif name == "SourceState.video":
        _pure_video = method
    elif name == "SourceState.audio":
        _pure_audio = method
    elif name == "CourierState.add":
        _pure_add = method
    elif name == "FanoutState._note_growth":
        _pure_note_growth = method
    elif name == "FanoutState.deliver_if_small":
        _pure_deliver_if_small = method
    elif name == "CopyInputState.append":
        _pure_append_copy = method
    else:
        raise ValueError(name)


def _no_alarm():
    pass


# Garbage that is collected is not cleared before it is freed: pages are counted until then.
@cython.no_gc_clear
cdef class PageAccount:
    """Counts the memory of pages. As `rtmpd.live.pages.PageAccount`."""

    cdef public PageAccount whole
    cdef public int64_t bytes
    cdef public object alarm_bytes, alarm

    def __init__(self, PageAccount whole=None):
        self.whole = whole
        self.bytes = 0
        self.alarm_bytes = None
        self.alarm = _no_alarm

    def add(self, int64_t size):
        """Count a new page."""
        self._add(size)

    def remove(self, int64_t size):
        """Count a page that has been freed."""
        self._remove(size)

    cdef int _add(self, int64_t size) except -1:
        self.bytes += size
        if self.alarm_bytes is not None and self.bytes > self.alarm_bytes:
            self.alarm()
        if self.whole is not None:
            self.whole._add(size)
        return 0

    cdef void _remove(self, int64_t size) noexcept:
        cdef PageAccount account = self
        while account is not None:
            account.bytes -= size
            account = account.whole


# Of rtmpd.live.pages, which imports this module: known when the first page is made.
cdef object _Page = None
cdef PageAccount _all_pages = None


cdef int _import_pages() except -1:
    global _Page, _all_pages
    from rtmpd.live import pages

    _Page, _all_pages = pages.Page, pages.ALL_PAGES
    return 0


@cython.no_gc_clear
cdef class PageState:
    """What an append changes of a page, and what it makes a new one of. As `rtmpd.live.pages.PageState`.

    The memory is not set to zeros: what is not written is not read.
    """

    cdef public bytearray buffer
    cdef public array.array starts
    cdef public bytearray kinds
    cdef public Py_ssize_t size, end
    cdef public PageState next
    cdef public int64_t base, number
    cdef public PageAccount account
    cdef public list disposable
    cdef object _view

    def __init__(self, Py_ssize_t size, int64_t base, int64_t number=0, PageAccount account=None):
        if account is None:
            if _all_pages is None:
                _import_pages()
            account = _all_pages
        self._begin(size, base, number, account)

    cdef int _begin(self, Py_ssize_t size, int64_t base, int64_t number, PageAccount account) except -1:
        # If there is no memory for the page, nothing has been counted: the size is 0.
        self.account = account
        self.buffer = PyByteArray_FromStringAndSize(NULL, size)
        self.base = base
        self.number = number
        self.starts = array.clone(_OFFSETS, 0, False)
        self.kinds = bytearray()
        self.disposable = []
        self.size = size
        account._add(size)
        return 0

    def __dealloc__(self):
        if self.account is not None:
            self.account._remove(self.size)

    @property
    def view(self):
        """The page's memory, for slices without a copy."""
        if self._view is None:
            self._view = memoryview(self.buffer)
        return self._view


cdef array.array _OFFSETS = array.array("I")


cdef class TrackState:
    """What an ordinary step changes of a track. As `rtmpd.media.timestamps.TrackState`."""

    cdef public int64_t last_in, raw, shown


cdef class TimelineState:
    """What an ordinary step changes of a timeline. As `rtmpd.media.timestamps.TimelineState`."""

    cdef public TrackState audio, video
    cdef public int64_t newest

    @cython.binding(False)
    def stamp(self, TrackState track not None, timestamp):
        cdef int64_t stamped = self._stamp(track, timestamp)
        return stamped if stamped >= 0 else _pure_stamp(self, track, timestamp)

    cdef inline int64_t _stamp(self, TrackState track, int64_t timestamp) noexcept:
        """Map a timestamp that is near the last one; -1: it is not."""
        cdef int64_t step
        if track.last_in < 0:
            return -1
        step = ((timestamp - track.last_in + _HALF) & _WORD) - _HALF
        if step < -_STEP_LIMIT_MS or step > _STEP_LIMIT_MS:
            return -1
        track.last_in = timestamp
        track.raw += step
        if track.raw > track.shown:
            track.shown = track.raw
            if track.raw > self.newest:
                self.newest = track.raw
        return track.shown & _WORD


cdef class LogState:
    """What an append of an ordinary message changes of a log, and what it needs. As `rtmpd.live.log.LogState`."""

    cdef public PageState tail, join_page
    cdef public object on_growth, headers, join_headers
    cdef public int64_t position, newest_timestamp, _alarm_at, join_position, join_timestamp, joins, _page_timestamp
    cdef public Py_ssize_t _chunk_size, _page_bytes, join_offset
    cdef public bint _finds_disposable
    cdef public PageAccount account
    cdef public tuple _page_limits

    @cython.binding(False)
    def append(self, type_id, timestamp, payload, kind, join_point=False):
        if not PyBytes_CheckExact(payload) or not self._append(
            type_id, timestamp, <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), kind, join_point
        ):
            _pure_append(self, type_id, timestamp, payload, kind, join_point)

    cdef bint _append(
        self, int type_id, int64_t timestamp, const uint8_t *payload, Py_ssize_t length, int kind, bint join_point
    ) except -1:
        """Append an ordinary message; return whether it was one."""
        cdef PageState page = self.tail
        cdef Py_ssize_t start, size, chunk_size = self._chunk_size
        cdef int csid = 4 if type_id == _AUDIO else 6 if type_id == _VIDEO else 8
        if (
            chunk_size <= 0
            or page is None
            or length > _MAX_MESSAGE_SIZE
            or timestamp < 0
            or timestamp > _WORD
            or (type_id != _VIDEO and type_id != _AUDIO and type_id != _DATA)
            or (type_id == _VIDEO and self._finds_disposable)
        ):
            return False
        size = _SHORT_HEADER + length
        if timestamp >= _EXTENDED:
            size += 4
        if length > chunk_size:
            size += (length - 1) // chunk_size * (5 if timestamp >= _EXTENDED else 1)
        start = page.end
        if start < 0 or page.size < 0 or size > page.size - start:
            page = self._turn(size, timestamp)
            start = 0
        if page.buffer is None or size > PyByteArray_GET_SIZE(page.buffer) - start:
            return False
        _frame(<uint8_t *>PyByteArray_AS_STRING(page.buffer) + start, csid, type_id, timestamp, payload, length, chunk_size)
        if join_point:
            self.join_page = page
            self.join_offset = start
            self.join_position = self.position
            self.join_timestamp = timestamp
            self.join_headers = self.headers
            self.joins += 1
            self.schedule()
        if type_id != _DATA:
            self.newest_timestamp = timestamp
        _add_start(page.starts, start)
        PyByteArray_Resize(page.kinds, PyByteArray_GET_SIZE(page.kinds) + 1)
        (<uint8_t *>PyByteArray_AS_STRING(page.kinds))[PyByteArray_GET_SIZE(page.kinds) - 1] = kind
        page.end = start + size
        self.position += size
        _touched.log, _touched.page, _touched.growth = <PyObject *>self, <PyObject *>page, <PyObject *>self.on_growth
        _touched.buffer, _touched.end = <PyObject *>page.buffer, PyByteArray_AS_STRING(page.buffer) + page.end
        _touched.starts, _touched.starts_end = <PyObject *>page.starts, page.starts.data.as_uints + len(page.starts)
        _touched.kinds = <PyObject *>page.kinds
        _touched.kinds_end = PyByteArray_AS_STRING(page.kinds) + PyByteArray_GET_SIZE(page.kinds)
        if self.on_growth is not None:
            _tell_growth(self.on_growth)
        if self.position >= self._alarm_at:
            self._alarm()
        return True

    cdef PageState _turn(self, Py_ssize_t size, int64_t timestamp):
        """Link a new last page. As `rtmpd.live.log.Log._turn`."""
        cdef PageState tail = self.tail, page
        cdef int64_t lasted_ms = (timestamp - self._page_timestamp) & _WORD
        cdef Py_ssize_t least_bytes, most_bytes
        least_bytes, most_bytes = self._page_limits
        if tail.size == 0 and size <= least_bytes:
            pass
        elif lasted_ms < _FAST_MS:
            self._page_bytes = min(self._page_bytes * 2, most_bytes)
        elif lasted_ms > _SLOW_MS:
            self._page_bytes = max(self._page_bytes // 2, least_bytes)
        self._page_timestamp = timestamp
        if _Page is None:
            _import_pages()
        page = <PageState>_Page.__new__(_Page)
        page._begin(max(size, self._page_bytes), self.position, tail.number + len(tail.starts), self.account)
        tail.next = page
        self.tail = page
        return page


cdef int _add_start(array.array starts, Py_ssize_t start) except -1:
    cdef Py_ssize_t count = len(starts)
    if starts.ob_descr.itemsize != sizeof(unsigned int):
        raise TypeError("expected an array of unsigned int")
    array.resize_smart(starts, count + 1)
    starts.data.as_uints[count] = <unsigned int>start
    return 0


cdef inline uint8_t *_put_word(uint8_t *to, uint32_t word) noexcept:
    to[0], to[1], to[2], to[3] = word >> 24, word >> 16 & 0xFF, word >> 8 & 0xFF, word & 0xFF
    return to + 4


cdef void _frame(
    uint8_t *to, int csid, int type_id, uint32_t timestamp, const uint8_t *payload, Py_ssize_t length, Py_ssize_t chunk_size
) noexcept:
    """Write a message of message stream 1 as chunks, as `rtmpd.protocol.chunk.frame_into` does."""
    cdef bint extended = timestamp >= _EXTENDED
    cdef Py_ssize_t size
    to = _put_word(to, <uint32_t>csid << 24 | (_EXTENDED if extended else timestamp))
    to = _put_word(to, <uint32_t>length << 8 | type_id)
    to = _put_word(to, 0x01000000)
    if extended:
        to = _put_word(to, timestamp)
    while True:
        size = min(length, chunk_size)
        memcpy(to, payload, size)
        to += size
        payload += size
        length -= size
        if length == 0:
            return
        to[0] = 0xC0 | csid
        to += 1
        if extended:
            to = _put_word(to, timestamp)


cdef CFunction _LOG_APPEND = (<MethodDescriptor *><PyObject *>LogState.__dict__["append"]).d_method.ml_meth


cdef class StatsState:
    """What frames ask of the statistics, and what a keyframe changes. As `rtmpd.live.stats.StatsState`."""

    cdef public bint asks_audio
    cdef public int64_t keyframes, keyframe_interval_ms, _keyframe_timestamp
    cdef public double keyframe_at
    cdef public object _video_reported

    cdef void _keyframe(self, int64_t timestamp, double now_s) noexcept:
        """Count a keyframe of a codec that is known."""
        if self.keyframes:
            self.keyframe_interval_ms = (timestamp - self._keyframe_timestamp) & _WORD
        self.keyframes += 1
        self.keyframe_at = now_s
        self._keyframe_timestamp = timestamp


# Identical copies --------------------------------------------------------------------------------------------------------

cdef enum:
    # As in rtmpd.live.copies.
    _WINDOW_MS = 8000
    _FIRST_FRAMES = 64
    _MAX_FRAMES = 4096  # a power of two, as all capacities
    _MEASURED = 16
    _MEASURED_EVERY = 8
    _JUMP_MS = 10000
    _BACK_MS = 1000
    _FIRST_TOLERANCE_MS = 5
    _MAX_TOLERANCE_MS = 20
    _APART = -2
    _DUPLICATE = -1
    _OTHER = -2

cdef double _GAP_FACTOR = 1.5
cdef int64_t _NEVER = -(<int64_t>1 << 62)


cdef struct _Merged:
    Py_hash_t signature
    int64_t time_ms
    bint alone  # until a second copy has brought the frame


cdef class MergedTrackState:
    """The newest frames of one type of the merged sequence. As `rtmpd.live.copies.MergedTrackState`."""

    cdef readonly int64_t first, end, newest_ms, usual_ms, filled
    cdef public int64_t duplicates
    cdef readonly double gap_ms, tolerance_ms
    cdef _Merged *_frames  # a ring: the place of a frame is its number modulo the capacity
    cdef int64_t _capacity

    def __cinit__(self, *args, **kwargs):
        # Memory is zeroed before this.
        self.newest_ms = _NEVER
        self.gap_ms = _JUMP_MS
        self.tolerance_ms = _FIRST_TOLERANCE_MS

    def __dealloc__(self):
        free(self._frames)

    def append(self, Py_hash_t signature, int64_t time_ms):
        """Append a frame; return its time."""
        return self._append(signature, time_ms)

    def matched(self, number):
        """Take note that another copy has brought a frame, too."""
        self._find(number).alone = False
        self.duplicates += 1

    def signature_of(self, number):
        """Return the hash of a frame."""
        return self._find(number).signature

    def time_of(self, number):
        """Return the time of a frame."""
        return self._find(number).time_ms

    cdef _Merged *_find(self, int64_t number) except NULL:
        if not self.first <= number < self.end:
            raise KeyError(number)
        return self._at(number)

    cdef inline _Merged *_at(self, int64_t number) noexcept:
        return &self._frames[number & (self._capacity - 1)]

    cdef int64_t _append(self, Py_hash_t signature, int64_t time_ms) except? -1:
        cdef int64_t number = self.end
        cdef _Merged *frame
        if number - self.first == self._capacity:
            self._make_room()
        if time_ms < self.newest_ms:
            time_ms = self.newest_ms
        else:
            self.newest_ms = time_ms
        frame = self._at(number)
        frame.signature, frame.time_ms, frame.alone = signature, time_ms, True
        self.end = number + 1
        if number % _MEASURED_EVERY == 0 and number:
            self._measure()
        # The newest frame stays.
        while self._at(self.first).time_ms < time_ms - _WINDOW_MS:
            self._drop()
        return time_ms

    cdef inline void _drop(self) noexcept:
        self.filled += self._at(self.first).alone
        self.first += 1

    cdef int _make_room(self) except -1:
        cdef int64_t capacity = self._capacity * 2 if self._capacity else _FIRST_FRAMES, number
        cdef _Merged *frames
        if capacity > _MAX_FRAMES:
            self._drop()
            return 0
        frames = <_Merged *>realloc(NULL, capacity * sizeof(_Merged))
        if frames == NULL:
            raise MemoryError
        for number in range(self.first, self.end):
            frames[number & (capacity - 1)] = self._at(number)[0]
        free(self._frames)
        self._frames = frames
        self._capacity = capacity
        return 0

    cdef void _measure(self) noexcept:
        """Measure the usual step: the median of the newest ones."""
        cdef int64_t steps[_MEASURED]
        cdef int64_t step, number
        cdef int count = 0, place
        for number in range(max(self.first, self.end - _MEASURED - 1) + 1, self.end):
            step = self._at(number).time_ms - self._at(number - 1).time_ms
            if step <= 0:
                continue
            place = count
            while place > 0 and steps[place - 1] > step:
                steps[place] = steps[place - 1]
                place -= 1
            steps[place] = step
            count += 1
        if count:
            self.usual_ms = steps[count // 2]
            self.gap_ms = self.usual_ms * _GAP_FACTOR + 1
            self.tolerance_ms = min(max(2.0, self.usual_ms / 2.0), <double>_MAX_TOLERANCE_MS)


cdef class CopyLaneState:
    """What an ordinary frame changes of one type of one copy. As `rtmpd.live.copies.CopyLaneState`."""

    cdef readonly MergedTrackState track
    cdef public int64_t offset_ms, last_ms, position, mismatches

    def __init__(self, MergedTrackState track not None, int64_t offset_ms):
        self.track = track
        self.offset_ms = offset_ms
        self.last_ms = _NEVER
        self.position = _APART
        self.mismatches = 0

    def take(self, int64_t time_ms, Py_hash_t signature):
        """Take a frame if it is simply the next one of its copy, while no copy is held."""
        return self._take(time_ms, signature)

    cdef int64_t _take(self, int64_t time_ms, Py_hash_t signature) except? -3:
        cdef MergedTrackState track = self.track
        cdef int64_t number = self.position + 1, timestamp_ms
        cdef _Merged *frame
        if track is None:
            return _OTHER
        if number == track.end:
            if not (-_BACK_MS <= time_ms - self.last_ms and time_ms - self.last_ms <= track.gap_ms):
                return _OTHER
            timestamp_ms = track._append(signature, time_ms) & _WORD
            self.last_ms = time_ms
            self.position = number
            return timestamp_ms
        if not track.first <= number < track.end:
            return _OTHER
        frame = track._at(number)
        if frame.signature != signature or not -track.tolerance_ms <= time_ms - frame.time_ms <= track.tolerance_ms:
            return _OTHER
        self.last_ms = time_ms
        self.position = number
        self.mismatches = 0
        frame.alone = False
        track.duplicates += 1
        return _DUPLICATE


cdef class CopyInputState:
    """What an ordinary frame of a copy needs. As `rtmpd.live.copies.CopyInputState`."""

    cdef public CopyLaneState video, audio
    cdef public list held
    cdef public object output

    @cython.binding(False)
    def append(self, type_id, timestamp_ms, payload, kind):
        if not PyBytes_CheckExact(payload) or not self._append(type_id, timestamp_ms, payload, kind):
            _pure_append_copy(self, type_id, timestamp_ms, payload, kind)

    cdef bint _append(self, int type_id, int64_t timestamp_ms, bytes payload, int kind) except -1:
        """Take a frame if it is simply the next one of its copy; return whether it was."""
        cdef CopyLaneState lane = self.video if type_id == _VIDEO else self.audio
        cdef int64_t found
        cdef object append
        if lane is None or self.held is None or len(self.held) != 0:
            return False
        found = lane._take(timestamp_ms - lane.offset_ms, PyObject_Hash(payload))
        if found == _OTHER:
            return False
        if found >= 0:
            append = self.output.append
            if not _append_to_log(append, type_id, found, payload, kind):
                append(type_id, found, payload, kind)
        return True


cdef inline bint _append_to_log(object append, int type_id, int64_t timestamp, bytes payload, int kind) except -1:
    """Append an ordinary message if *append* is the method of the only output's log; return whether it was that."""
    return (
        PyCFunction_CheckExact(append)
        and PyCFunction_GET_FUNCTION(append) == _LOG_APPEND
        and (<LogState>PyCFunction_GET_SELF(append))._append(
            type_id, timestamp, <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), kind, False
        )
    )


cdef CFunction _COPY_APPEND = (<MethodDescriptor *><PyObject *>CopyInputState.__dict__["append"]).d_method.ml_meth


# Sources -----------------------------------------------------------------------------------------------------------------



cdef class SourceState:
    """What an ordinary frame changes of a source, and what it needs. As `rtmpd.live.source.SourceState`."""

    cdef public object _stream, _timeline, _join_track, stats
    cdef public int64_t bytes_in, audio_messages, video_messages
    cdef public bint _has_video

    def __cinit__(self, *args, **kwargs):
        global _Timeline
        if _Timeline is None:
            from rtmpd.media.timestamps import Timeline as _Timeline

    @cython.binding(False)
    def video(self, timestamp, payload):
        if self._stream is not None and not (
            PyBytes_CheckExact(payload)
            and self._take(_VIDEO, timestamp, <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), payload)
        ):
            _pure_video(self, timestamp, payload)

    @cython.binding(False)
    def audio(self, timestamp, payload):
        if self._stream is not None and not (
            PyBytes_CheckExact(payload)
            and self._take(_AUDIO, timestamp, <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), payload)
        ):
            _pure_audio(self, timestamp, payload)

    cdef bint _take(self, int type_id, int64_t timestamp, const uint8_t *data, Py_ssize_t length, bytes payload) except -1:
        """Take an ordinary frame; return whether it was one. The payload is made from the data if it is not given."""
        cdef object stream = self._stream, append
        cdef TimelineState timeline
        cdef TrackState track
        cdef int64_t stamped
        if stream is None or length < 2 or type(self._timeline) is not _Timeline:
            return False
        timeline = <TimelineState>self._timeline
        if type_id == _VIDEO and data[0] == 0x17 and data[1] == 1:
            return self._take_keyframe(timestamp, data, length, payload)
        if type_id == _VIDEO:
            # A frame of AVC with a legacy header: it begins no group of pictures, is no command and no sequence header.
            if data[0] & 15 != 7 or data[0] >= 0x80 or data[0] >> 4 == 1 or data[0] >> 4 == 5 or data[1] != 1:
                return False
            self.video_messages += 1
            self._has_video = True
            track = timeline.video
        else:
            # A frame of AAC, whose configuration is known.
            if data[0] >> 4 != 10 or data[1] == 0 or not self._has_video or self._asks_audio():
                return False
            self.audio_messages += 1
            track = timeline.audio
        self.bytes_in += length
        stamped = timeline._stamp(track, timestamp) if track is not None else -1
        if stamped < 0:
            stamped = timeline.stamp(track, timestamp)
        _touched.source, _touched.timeline, _touched.track = <PyObject *>self, <PyObject *>timeline, <PyObject *>track
        _touched.stream, _touched.stats = <PyObject *>stream, <PyObject *>self.stats
        try:
            append = stream.append
            _touched.append = <PyObject *>append
            # The method of the only output's log.
            if not (
                PyCFunction_CheckExact(append)
                and PyCFunction_GET_FUNCTION(append) == _LOG_APPEND
                and (<LogState>PyCFunction_GET_SELF(append))._append(type_id, stamped, data, length, _FRAME, False)
            ):
                if payload is None:
                    payload = PyBytes_FromStringAndSize(<char *>data, length)
                if not (
                    PyCFunction_CheckExact(append)
                    and PyCFunction_GET_FUNCTION(append) == _COPY_APPEND
                    and (<CopyInputState>PyCFunction_GET_SELF(append))._append(type_id, stamped, payload, _FRAME)
                ):
                    append(type_id, stamped, payload, _FRAME)
        except Exception as error:
            stream.append_failed(error)
        return True


    cdef bint _take_keyframe(self, int64_t timestamp, const uint8_t *data, Py_ssize_t length, bytes payload) except -1:
        """Take a keyframe of AVC with a legacy header, whose configuration is known; return whether it was one."""
        cdef TimelineState timeline = <TimelineState>self._timeline
        cdef StatsState stats
        cdef int64_t stamped
        if not isinstance(self.stats, StatsState) or timeline.video is None or not _is_source(self):
            return False
        stats = <StatsState>self.stats
        if stats._video_reported is None:
            return False
        if payload is None:
            payload = PyBytes_FromStringAndSize(<char *>data, length)
        self.video_messages += 1
        self.bytes_in += length
        self._has_video = True
        stamped = timeline._stamp(timeline.video, timestamp)
        if stamped < 0:
            stamped = timeline.stamp(timeline.video, timestamp)
        # Readers may start here, whatever tracks there are: this is the lowest one.
        if self._join_track is None or self._join_track != 0:
            self._join_track = 0
        stats._keyframe(stamped, _source_module.time.monotonic())
        self._stream.deliver(_VIDEO, stamped, payload, _KEYFRAME, True)
        return True

    cdef inline bint _asks_audio(self) except -1:
        cdef object stats = self.stats
        return (<StatsState>stats).asks_audio if isinstance(stats, StatsState) else stats.asks_audio


# Of rtmpd.live.source, which imports this module: known when the first frame comes. A subclass may have other rules.
cdef object _Source = None, _source_module


cdef bint _is_source(object source) except -1:
    global _Source, _source_module
    if _Source is None:
        from rtmpd.live import source as _source_module

        _Source = _source_module.Source
    return type(source) is _Source


# Reads ---------------------------------------------------------------------------------------------------------------------

cdef enum:
    _RECEIVE_BYTES = 32 << 10  # rtmpd.net.transport.RECEIVE_BYTES
    _BLOCK = 16
    _EPOLLIN = 1

cdef uint8_t _buffer[_RECEIVE_BYTES]  # what sockets are read into; nothing refers to it after a read was taken


cdef class EndpointState:
    """What every read changes of an endpoint. As `rtmpd.protocol.endpoint.EndpointState`."""

    cdef public object reader
    cdef public object outgoing
    cdef public int64_t bytes_received, messages_received, ack_at

    def __init__(self):
        self.outgoing = bytearray()
        self.bytes_received = self.messages_received = self.ack_at = 0


cdef class FrameIntake:
    """Hands ordinary frames to their sources. As `rtmpd.protocol.intake.FrameIntake`."""

    cdef EndpointState _endpoint
    cdef dict _sources
    cdef object _take_data, _take_messages
    cdef public bint direct
    cdef _Touched _needs  # what the last frame has touched

    def __init__(self, EndpointState endpoint not None, dict sources not None, take_data, take_messages):
        self._endpoint = endpoint
        self._sources = sources
        self._take_data = take_data
        self._take_messages = take_messages
        self.direct = False

    def __call__(self, data):
        cdef Py_buffer view
        if not self.direct:
            return self._take_data(data)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self._take(<const uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef object _take(self, const uint8_t *data, Py_ssize_t size):
        cdef EndpointState endpoint = self._endpoint
        cdef ChunkReader reader = endpoint.reader
        cdef list messages = []
        cdef int handed
        endpoint.bytes_received += size
        if endpoint.bytes_received >= endpoint.ack_at:
            endpoint.acknowledge()
        handed = reader._feed_frames(data, size, _FRAMES, self._sources, messages)
        if handed:
            self._needs = _touched
            self._needs.reader = <PyObject *>reader
        endpoint.messages_received += handed + len(messages)
        if messages or reader.unread or endpoint.outgoing:
            return self._take_messages(messages)
        return None


cdef class TransportState:
    """What a read needs of a transport. As `rtmpd.net.transport.TransportState`."""

    cdef public object intake


cdef inline object _intake_of(object sock):
    return (<TransportState>sock).intake if isinstance(sock, TransportState) else sock.intake


cdef int _prefetch_sockets(list events, dict sockets) except -1:
    """Ask for what reads begin with. One after the other they would wait for it."""
    cdef PyObject *found[_BLOCK]
    cdef int count = 0, index
    cdef object event
    for event in events:
        if count == _BLOCK:
            break
        found[count] = PyDict_GetItem(sockets, (<tuple>event)[0])
        if found[count] != NULL:
            _prefetch(found[count], 1)
            count += 1
    for index in range(count):
        if isinstance(<object>found[index], TransportState):
            _prefetch(<PyObject *>(<TransportState>found[index]).intake, 4)
    return 0


def read_each(list events not None, dict sockets not None):
    """Read the sockets that have events. As `rtmpd.net.readers.read_each`."""
    cdef object sock, intake, taken
    cdef int number, found
    cdef ssize_t size
    _prefetch_sockets(events, sockets)
    for number, found in events:
        # It may have been closed since, by what came for another one.
        sock = sockets.get(number)
        if sock is None:
            continue
        intake = _intake_of(sock) if found == _EPOLLIN else None
        if type(intake) is not FrameIntake or not (<FrameIntake>intake).direct:
            sock.readable(ending=found != _EPOLLIN)
            continue
        _prefetch(<PyObject *>(<FrameIntake>intake)._endpoint, 2)
        _prefetch(<PyObject *>(<FrameIntake>intake)._sources, 1)
        _prefetch_touched(&(<FrameIntake>intake)._needs)
        size = c_recv(number, _buffer, _RECEIVE_BYTES, MSG_DONTWAIT)
        if size < 0:
            if errno != EAGAIN and errno != EINTR:
                sock.read_failed(errno)
            continue
        if size == 0:
            # The end: the next read finds it again.
            sock.readable(ending=True)
            continue
        try:
            if size == _RECEIVE_BYTES:
                sock.read_full()
            taken = (<FrameIntake>intake)._take(_buffer, size)
        except Exception:
            sock.wake_with_error()
            continue
        if taken is not None:
            sock.wake(taken)


# Delivering --------------------------------------------------------------------------------------------------------------

cdef enum:
    _SMALL = 64  # SMALL
    _STREAMS = 16  # _BLOCK of rtmpd.live.courier
    _CALLED = 1
    _RESTING = 2
    _NEEDS = 19
    _GATHER_BYTES = 1 << 20
    _JOINED_BYTES = 64 << 10  # a range on two pages is copied together

cdef char _joined[_JOINED_BYTES]
cdef double _SLICE_S = 0.003


cdef class GroupState:
    """What an ordinary pass needs of a group, and its cursor, which it moves. As `rtmpd.live.fanout.GroupState`."""

    cdef public list members
    cdef public PageState page
    cdef public Py_ssize_t offset, _left
    cdef public bint passing


cdef class CourierState:
    """What news of a stream change of a courier, if a turn is to come in any case. As `rtmpd.live.courier.CourierState`."""

    cdef public list _due
    cdef public int _state
    cdef object _paced_options  # some for which it was asked already: most streams have the same

    @cython.binding(False)
    def add(self, fanout):
        self._add(fanout)

    def all_pace(self, list due not None):
        cdef object fanout
        for fanout in due:
            if not self._paces(fanout):
                return False
        return True

    cdef inline bint _paces(self, object fanout) except -1:
        """Return whether deliveries may rest for a fan-out."""
        cdef object options = (<FanoutState>fanout).options if isinstance(fanout, FanoutState) else None
        if options is not None and options is self._paced_options:
            return True
        if not fanout.paces:
            return False
        self._paced_options = options
        return True

    cdef int _add(self, object fanout) except -1:
        if self._due is not None and (self._state == _CALLED or (self._state == _RESTING and self._paces(fanout))):
            self._due.append(fanout)
        else:
            _pure_add(self, fanout)
        return 0


cdef class FanoutState:
    """What an ordinary pass of the courier needs of a fan-out. As `rtmpd.live.fanout.FanoutState`."""

    cdef public LogState log
    cdef public GroupState _group
    cdef public CourierState _courier
    cdef public object options, counters
    cdef public set _lagging, _waiting
    cdef public list _after_pass
    cdef public bint _noted
    cdef object _known_options
    cdef bint _gop_cache  # of these
    cdef const void *_needs[_NEEDS]  # what the last pass has touched, beside the log

    @cython.binding(False)
    def _note_growth(self):
        self._note()

    cdef inline int _note(self) except -1:
        if not self._noted:
            if self._courier is None:
                _pure_note_growth(self)
            else:
                self._noted = True
                self._courier._add(self)
        return 0

    @cython.binding(False)
    def deliver_if_small(self):
        self._deliver()

    cdef int _deliver(self) except -1:
        """Send what is new, on the last two pages, to members that are all in sync and at plain sockets.

        Python goes on with the first member that is not, or does not accept everything. No code of Python's runs before that,
        so that none can see the pass under way.
        """
        cdef GroupState group
        cdef PageState page, tail
        cdef object member, bytes_sent, sent = None
        cdef const char *data
        cdef Py_ssize_t index = 0, count, size, accepted
        cdef int descriptor, error
        if self.options is not self._known_options:
            self._gop_cache = self.options.gop_cache
            self._known_options = self.options
        if not self._gop_cache or not self._is_ordinary():
            _pure_deliver_if_small(self)
            return 0
        group = self._group
        page, tail = group.page, self.log.tail
        count, size = len(group.members), page.end - group.offset
        data = PyByteArray_AS_STRING(page.buffer) + group.offset
        if page is not tail:
            if size == 0:
                # The page had been sent as a whole.
                data, size = PyByteArray_AS_STRING(tail.buffer), tail.end
            elif size + tail.end <= _JOINED_BYTES:
                memcpy(_joined, data, size)
                memcpy(_joined + size, PyByteArray_AS_STRING(tail.buffer), tail.end)
                data, size = _joined, size + tail.end
            else:
                size = 0
            if size == 0:
                _pure_deliver_if_small(self)
                return 0
        elif size == 0:
            self._noted = False
            return 0
        try:
            bytes_sent = self.counters.bytes_sent + size * count
            while index < count:
                member = group.members[index]
                descriptor = _descriptor_of((<SubscriberState>member).send) if isinstance(member, SubscriberState) else -1
                if descriptor < 0:
                    break
                accepted = c_send(descriptor, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
                if accepted == size:
                    index += 1
                    continue
                error = errno
                if accepted >= 0:
                    sent = accepted
                elif error == EAGAIN or error == EINPROGRESS or error == EALREADY:
                    sent = 0
                elif error != EINTR:
                    sent = OSError(error, os.strerror(error))
                break
        except Exception:
            # There is no memory: Python tries again at this member.
            pass
        if index < count:
            _pure_deliver_if_small(self, index, sent)
            return 0
        self._noted = False
        group.page = tail
        group.offset = tail.end
        self.counters.bytes_sent = bytes_sent
        self._remember(group)
        return 0

    cdef inline void _remember(self, GroupState group) noexcept:
        """Take note of what a pass touches: of the members, the first ones."""
        cdef Py_ssize_t index
        cdef PyObject *member
        cdef PyObject *send
        cdef int place = 4
        self._needs[0] = <PyObject *>group
        self._needs[1] = <PyObject *>group.members
        self._needs[2] = <PyObject *>self.counters
        self._needs[3] = (<PyListObject *>group.members).ob_item
        for index in range(min(len(group.members), 5)):
            member = (<PyListObject *>group.members).ob_item[index]
            send = <PyObject *>(<SubscriberState>member).send
            self._needs[place] = member
            self._needs[place + 1] = send
            self._needs[place + 2] = PyCFunction_GET_SELF(<object>send)
            place += 3

    cdef bint _is_ordinary(self) noexcept:
        """Whether the group is small, in sync, and on the log's last page or the one before, and nothing else is to be done."""
        cdef GroupState group = self._group
        cdef PageState page, tail
        if (
            group is None
            or group.page is None
            or self.log is None
            or self.log.tail is None
            or group.passing
            or group._left != 0
            or group.members is None
            or not 0 < len(group.members) <= _SMALL
            or self._lagging is None
            or len(self._lagging) != 0
            or self._waiting is None
            or len(self._waiting) != 0
            or self._after_pass is None
            or len(self._after_pass) != 0
        ):
            return False
        page, tail = group.page, self.log.tail
        if page is not tail and (page.next is not tail or tail.base - page.base > _GATHER_BYTES or not _is_sound(tail)):
            return False
        return _is_sound(page) and 0 <= group.offset <= page.end


cdef inline bint _is_sound(PageState page) noexcept:
    return page.buffer is not None and 0 <= page.end <= PyByteArray_GET_SIZE(page.buffer)


cdef CFunction _NOTE_GROWTH = (<MethodDescriptor *><PyObject *>FanoutState.__dict__["_note_growth"]).d_method.ml_meth


cdef inline int _tell_growth(object on_growth) except -1:
    if PyCFunction_CheckExact(on_growth) and PyCFunction_GET_FUNCTION(on_growth) == _NOTE_GROWTH:
        _touched.fanout = PyCFunction_GET_SELF(on_growth)
        return (<FanoutState>PyCFunction_GET_SELF(on_growth))._note()
    on_growth()
    return 0


# Of rtmpd.live.fanout, which imports this module: known at the first turn. A subclass may have other rules.
cdef object _Fanout = None


cdef int _import_fanout() except -1:
    global _Fanout
    from rtmpd.live.fanout import Fanout as _Fanout

    return 0


def deliver_each(list due not None, clock, double begun):
    """Let fan-outs deliver. As `rtmpd.live.courier.deliver_each`."""
    cdef Py_ssize_t index = 0, place
    cdef object fanout, following
    if _Fanout is None:
        _import_fanout()
    for fanout in due:
        # Ask for what the next ones need.
        if index + 2 < len(due):
            _prefetch(<PyObject *>due[index + 2], 8)
        if index + 1 < len(due):
            following = due[index + 1]
            if isinstance(following, FanoutState):
                for place in range(_NEEDS):
                    _prefetch((<FanoutState>following)._needs[place], 1)
        if type(fanout) is _Fanout:
            (<FanoutState>fanout)._deliver()
        else:
            fanout.deliver_if_small()
        index += 1
        if index % _STREAMS == 0 and clock() - begun > _SLICE_S:
            break
    return index
