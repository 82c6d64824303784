"""The INI file: one specification, its loader, its typed model and its rendering.

Pure but for reading the file that it is asked to read. May import: rtmpd.errors.
"""
