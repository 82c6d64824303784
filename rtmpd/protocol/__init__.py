"""RTMP over bytes: handshake, chunks, messages, AMF and commands, for client and server. No event loop, socket or clock."""
