"""RTMP over bytes: handshake, chunks, messages, AMF, commands.

Pure: nothing here knows an event loop, a socket or a clock. Readers are fed and give whole messages, writers return
bytes.
May import: rtmpd.errors.
"""
