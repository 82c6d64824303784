"""Sockets, TLS and the PROXY header. The only package that creates sockets for connections."""
