"""The composition root: builds the server from its configuration, starts and stops it."""
