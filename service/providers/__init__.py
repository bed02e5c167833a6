"""Clients of outside services. What comes from there is hostile until it is checked."""
