"""The command `clearstamp`, as `python -P -m clearstamp.evidence`; without -P the current folder is imported from."""

import sys

from clearstamp.evidence.commands import main

if __name__ == "__main__":
    sys.exit(main())
