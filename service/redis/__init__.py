"""How the service reaches Redis, and what it keeps there."""
