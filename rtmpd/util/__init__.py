"""Small mechanisms that several rooms use, each once: none of them knows what it is used for."""
