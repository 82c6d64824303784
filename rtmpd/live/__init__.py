"""A live stream and who reads it: the wire log, its cursors and the fan-out.

Makes no sockets: a subscriber writes through the transport that it is given. May import gevent, and everything below.
"""
