"""HTTP: the listener, and the client of webhooks and callbacks."""
