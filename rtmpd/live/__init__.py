"""A live stream, its logs and framings, their cursors, and the fan-out.

Makes no sockets: a subscriber writes through the transport that it is given. May import gevent, and everything below.
"""
