"""Authentication: who may publish and play, and under which name."""
