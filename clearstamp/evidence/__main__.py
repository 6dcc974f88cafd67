"""The command `clearstamp`, as `python -P -m clearstamp.evidence`: with -P, nothing beside you is imported."""

import sys

from clearstamp.evidence.commands import main

if __name__ == "__main__":
    sys.exit(main())
