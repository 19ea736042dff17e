"""`python -m emul CONFIG.json`: one adapter in a process of its own (`emul.process.main`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from emul.process import main

main(json.loads(Path(sys.argv[1]).read_text()))
