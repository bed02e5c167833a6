"""How the service reaches PostgreSQL. What it says there is in repositories/."""
