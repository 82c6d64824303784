"""The configuration: one specification, its loader, its typed model and its rendering. No I/O except reading the file."""
