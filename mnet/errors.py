"""Errors that a user can mend. The command line prints their one sentence and exits with 2."""


class MnetError(Exception):
    """A finished sentence: what is wrong, where, and what to do about it."""


class ModelError(MnetError):
    """A model file that is damaged, or that asks for what mnet does not do."""


class DataError(MnetError):
    """A data set that is missing or is not laid out as expected."""


class ToolError(MnetError):
    """A compiler or emulator that is missing, or that failed."""


class MissingToolError(ToolError):
    """A compiler, emulator or runtime that is not there: what needs it was not done, which is no failure of it."""


class PlanError(MnetError):
    """A network that cannot be planned as asked (target, oracle, memory)."""
