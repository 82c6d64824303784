"""Relays: streams that are pushed on to other servers."""
