"""What every feature of the API needs from HTTP."""
