"""Sockets: the listener and the transport. The only place that makes them.

May import: gevent, rtmpd.errors.
"""
