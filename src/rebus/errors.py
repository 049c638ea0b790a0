"""The error that a user's bad input gets: what is wrong, the values that disagree, what to do."""


class RebusError(ValueError):
    """Bad input or a setting that cannot work; its message is meant to be read by the user as it stands."""
