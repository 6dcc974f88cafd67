"""The command `clearstamp`, as `python -m clearstamp.evidence`."""

import sys

from clearstamp.evidence.commands import main

if __name__ == "__main__":
    sys.exit(main())
