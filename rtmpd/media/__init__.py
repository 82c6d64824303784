"""What is inside audio and video messages: tag headers, codecs, timestamps.

Pure, like rtmpd.protocol. May import: rtmpd.protocol, rtmpd.errors.
"""
