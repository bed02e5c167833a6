"""The settings of the service, read once at start."""
