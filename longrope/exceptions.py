"""Everything longrope raises on purpose.

LongRopeError
├── InvalidInputError          what the user gave cannot be used; the command line exits with 2
│   ├── FactorsError           factors or schedules that are malformed or belong to another model
│   ├── DataError              documents that are missing, unreadable or too short
│   ├── UnsupportedModelError  a model without RoPE, or an architecture not in the table
│   ├── SettingsError          settings that contradict each other or the model
│   └── RunExistsError         an output folder that holds another run
│       └── OtherRunError      one that was begun otherwise, with which these settings cannot go on
└── RunFailedError             the run itself failed; the command line exits with 1
    └── WorkerError            evaluators could not be started or kept failing

A message is one line: what was given, what is allowed, what to do.
"""


class LongRopeError(Exception):
    """Base of every error that longrope raises on purpose."""


class InvalidInputError(LongRopeError, ValueError):
    """What the user gave cannot be used."""


class FactorsError(InvalidInputError):
    """Factors or schedules are malformed, or belong to another model."""


class DataError(InvalidInputError):
    """Documents are missing, unreadable or too short."""


class UnsupportedModelError(InvalidInputError):
    """The model has no RoPE, or its architecture is not in the table."""


class SettingsError(InvalidInputError):
    """Settings contradict each other or the model."""


class RunExistsError(InvalidInputError):
    """The output folder holds another run."""


class OtherRunError(RunExistsError):
    """What an output folder holds was begun otherwise than is asked for now, so that it cannot be gone on with.

    Args:
        message: the whole line.
        why: what of it says why.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class RunFailedError(LongRopeError, RuntimeError):
    """The run itself failed."""


class WorkerError(RunFailedError):
    """Evaluators could not be started, or kept failing."""
