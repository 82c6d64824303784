"""The deadlines and bounds of HTTP connections, which HTTP/1.1 and HTTP/2 share."""

from __future__ import annotations

REQUEST_S = 10.0
"""The longest time for a whole request, from its first byte on, or from the beginning of the connection."""

IDLE_S = 30.0
"""How long a connection is kept for a further request."""

WRITE_S = 10.0
"""The longest time to send a response, or a piece of `PIECE_BYTES` of a long one."""

PIECE_BYTES = 1 << 20
"""What a client must read in `WRITE_S` of a long response."""

LINGER_S = 1.0
"""How long what a refused client still sends is read and discarded: it could not read the refusal otherwise."""

BODY_LIMIT_BYTES = 64 << 10
"""The largest body of a request."""

REQUESTS_LIMIT = 1000
"""The requests of one connection; then it is closed."""
