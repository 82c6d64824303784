"""RTMP connections: one greenlet each that does the handshake, then what each message asks for.

A connection decides nothing about policy: it asks the hub before it says Publish.Start or Play.Start.
"""
