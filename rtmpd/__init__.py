"""rtmpd: an RTMP server for Linux, on gevent."""

__version__ = "0.1.0"
