"""From pictures to a verdict: seal, examine, verify."""

from clearstamp.evidence.seal import Choices, Seal
from clearstamp.evidence.verdict import Outcome, Verdict, judge, verify

__all__ = ["Choices", "Outcome", "Seal", "Verdict", "judge", "verify"]
