"""Run records again, those verified longest ago first, and compare: python notebooks/audit.py --profile paper --count 2

Every audit is one line in ``artifacts/<profile>/audits.jsonl``. The exit status is 1 if a record does not agree.
"""

import argparse
import sys
from collections.abc import Sequence

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction import audit


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", nargs="*", help="names of records; those verified longest ago if none is given")
    parser.add_argument("--profile", default="paper", help="quick or paper")
    parser.add_argument("--count", type=int, default=2, help="how many")
    options = parser.parse_args(arguments)
    agreed = True
    try:
        if options.count < 1:
            raise RecordError("no such number of records", got=options.count, expected="at least 1")
        names = options.records or audit.due(options.profile)[: options.count]
        if not names:
            raise RecordError("nothing to audit", got=f"no record in profile {options.profile!r}")
        for made in audit.perform(options.profile, names):
            agreed &= made.agrees
            apart = ", ".join([f"{name} {most:.4f}" for name, most in made.differences.items()])
            lacking = f"; only one has {', '.join(made.missing)}" if made.missing else ""
            outcome = "agrees" if made.agrees else "DIFFERS"
            print(
                f"{made.record}  {outcome}  (greatest differences: {apart or 'nothing to compare'}{lacking})",
                flush=True,
            )
    except ClearStampError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was audited is noted", file=sys.stderr)
        return 130
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
