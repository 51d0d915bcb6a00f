"""The error of a run that cannot start or continue; it imports nothing, so that the command line stays light."""


class RunError(RuntimeError):
    """A run cannot start or continue; the message says why and what to do."""
