"""One family of errors: what was got, what was expected, where, and what to do."""

__all__ = [
    "AttackError",
    "ClearStampError",
    "CodingError",
    "DataError",
    "EvidenceError",
    "RecordError",
    "SchemeError",
    "SealError",
    "StampError",
    "SuspectError",
    "TrainingError",
    "TransposeError",
]


class ClearStampError(ValueError):
    """Base of every error that this library raises deliberately."""

    def __init__(
        self,
        problem: str,
        *,
        got: object = None,
        expected: object = None,
        where: object = None,
        remedy: str | None = None,
    ):
        parts = [problem]
        for name, value in (("got", got), ("expected", expected), ("where", where)):
            if value is not None:
                parts.append(f"{name}: {value}")
        if remedy is not None:
            parts.append(f"what to do: {remedy}")
        super().__init__("; ".join(parts))


class StampError(ClearStampError):
    """A key, a secret, a stamp or a stamp file that cannot be used."""


class CodingError(ClearStampError):
    """Bits that do not fit their images, or a payload that cannot be read back."""


class TransposeError(ClearStampError):
    """A model that cannot be run backwards, or a signal that does not fit it."""


class TrainingError(ClearStampError):
    """Training that cannot start or must not go on."""


class DataError(ClearStampError):
    """A data set that is missing, damaged or unknown."""


class AttackError(ClearStampError):
    """An attack that does not fit the model or the data, or whose settings are out of range."""


class SuspectError(ClearStampError):
    """A checkpoint that cannot be read safely, or that does not fit the model."""


class SchemeError(ClearStampError):
    """Key material that cannot be drawn, read or used, or a model that it does not fit."""


class SealError(ClearStampError):
    """A seal, or choices, that cannot be used, or that do not fit the model."""


class EvidenceError(ClearStampError):
    """Evidence, a signature or a time-stamp that cannot be made or read."""


class RecordError(ClearStampError):
    """A record, a claim, a profile or a notebook parameter that does not fit."""
