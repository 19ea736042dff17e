"""The command."""

import sys

from emul.perftest.command import main

sys.exit(main(sys.argv[1:]))
