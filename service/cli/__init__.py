"""Commands for operators; service/__main__.py puts them together."""
