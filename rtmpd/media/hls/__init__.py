"""HTTP Live Streaming and its low-latency mode (draft-pantos-hls-rfc8216bis-22): cutting, playlists and their window. Pure."""
