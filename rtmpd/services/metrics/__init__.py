"""Metrics for Prometheus and as JSON, collected from the live objects when a client requests them."""
