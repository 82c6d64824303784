"""Authentication: decides which clients may connect, publish and play, and under which name a publish goes."""
