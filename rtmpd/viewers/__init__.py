"""Players that watch by HTTP: each is a subscriber of a stream's output, as a player of RTMP is."""
