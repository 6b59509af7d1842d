"""`progressor`, the operator's command line: the verbs of a node elsewhere, over its native service (docs/cli.md).

Exit status: 0 done, 1 an error was answered, 2 wrong usage, 3 there is no node to connect to.
"""

from progressor.cli.command import main

__all__ = ["main"]
