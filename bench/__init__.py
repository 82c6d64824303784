"""Load generators and scenarios that measure rtmpd from outside, over loopback sockets: ``python -m bench --help``."""
