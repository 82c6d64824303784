"""What the server shows by HTTP. Imports services and everything below; not the daemon."""
