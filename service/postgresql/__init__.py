"""How the service reaches PostgreSQL; the statements are in repositories/."""
