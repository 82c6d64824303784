"""Recordings: FLV files of live streams. The service is in service.py."""
