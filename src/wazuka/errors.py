"""The one exception that means: the input is wrong, and here is how to mend it."""


class UserError(ValueError):
    """A mistake in what a person gave us, told in one sentence that says what is wrong and how to mend it.

    The command line prints the sentence and exits with code 2, without a traceback.
    """
