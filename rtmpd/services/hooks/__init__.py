"""Hooks: programs, web servers and whoever reads standard output are told of events."""
