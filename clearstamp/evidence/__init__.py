"""From pictures to a verdict: seal, examine, verify."""

from clearstamp.evidence.checks import Check, Mark, Result, verify_evidence
from clearstamp.evidence.examination import examine
from clearstamp.evidence.folder import Evidence
from clearstamp.evidence.seal import Choices, Seal
from clearstamp.evidence.signing import Signer, check_token, fetch_token, time_stamp_request
from clearstamp.evidence.statements import Statement, commit, deposit
from clearstamp.evidence.verdict import Outcome, Verdict, judge, verify

__all__ = [
    "Check",
    "Choices",
    "Evidence",
    "Mark",
    "Outcome",
    "Result",
    "Seal",
    "Signer",
    "Statement",
    "Verdict",
    "check_token",
    "commit",
    "deposit",
    "examine",
    "fetch_token",
    "judge",
    "time_stamp_request",
    "verify",
    "verify_evidence",
]
