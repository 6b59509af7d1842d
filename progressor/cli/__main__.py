import sys

from progressor.cli import main

if __name__ == "__main__":
    sys.exit(main())
