"""Clients of services outside. What comes from there is hostile until it is checked."""
