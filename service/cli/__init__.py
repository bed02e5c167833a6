"""The command line: a module a command, put together in parser.py.

A module imports what is slow where a command needs it, because each start pays for it.
"""
