"""Metrics: figures of the server for Prometheus, and as JSON. All are collected when somebody asks."""
