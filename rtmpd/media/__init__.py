"""The contents of audio and video messages: headers, codecs, timestamps, rewriting for players, FLV. No I/O, no clock."""
