"""The player page: plays a live stream in a browser. The page and its scripts are the files in this folder."""
