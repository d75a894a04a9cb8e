"""What a user can mend: raised with one line that says what is wrong, where, and how to mend it."""


class UserError(Exception):
    """A mistake in what the user gave; the command line prints its one line and exits with status 2.

    It stays one line whatever breaks lines in what the user gave.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))
