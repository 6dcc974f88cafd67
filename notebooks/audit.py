"""Run records again, those verified longest ago first, and compare: python notebooks/audit.py --profile paper --count 2

Every audit is one line in ``artifacts/<profile>/audits.jsonl``. The exit status is 1 if a record does not agree.
"""

import argparse
import sys
from collections.abc import Sequence

from clearstamp import audit
from clearstamp.errors import ClearStampError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", nargs="*", help="names of records; those verified longest ago if none is given")
    parser.add_argument("--profile", default="paper", help="quick or paper")
    parser.add_argument("--count", type=int, default=2, help="how many")
    options = parser.parse_args(arguments)
    agreed = True
    try:
        for made in audit.perform(options.profile, options.records or audit.due(options.profile)[: options.count]):
            agreed &= made.agrees
            apart = ", ".join(f"{name} {most:.4f}" for name, most in made.differences.items())
            print(f"{made.record}  {'agrees' if made.agrees else 'DIFFERS'}  (greatest differences: {apart or 'none'})")
    except ClearStampError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
