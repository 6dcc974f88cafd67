"""The report: one page that a person reads, without a script, and with everything escaped that others wrote."""

from clearstamp.evidence.folder import Evidence


def render(evidence: Evidence) -> bytes:
    """``report.html`` of everything else in the folder; the same bytes for the same members."""
    raise NotImplementedError
