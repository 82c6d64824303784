"""Hooks: events are delivered to programs, web servers and the reader of standard output."""
