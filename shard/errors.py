"""The one exception type that users are meant to read."""


class FeedlineError(Exception):
    """Bad input or a failed job, told in one line: what, the value seen, and the remedy.

    Command line programs print it as `error: …` without a traceback and exit with status 1.
    """
