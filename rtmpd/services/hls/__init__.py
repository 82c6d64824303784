"""HLS: live streams as segments and playlists, made of the published log and served over HTTP."""
