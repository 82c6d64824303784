"""Builds the server from its configuration, starts, reloads and stops it, and checks a configuration before a start."""
