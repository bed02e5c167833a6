"""What only an operator can fix."""


class OperatorError(Exception):
    """The service or a command cannot go on: one sentence that says why, and what to do."""
