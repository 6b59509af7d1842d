"""Lets `python scripts/bench` find the package that it is a part of."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cli import main

sys.exit(main())
