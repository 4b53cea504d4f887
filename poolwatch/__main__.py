"""``poolwatch``, also as ``python -m poolwatch``."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C ends it quietly while it is still loading, too."""
    try:
        from poolwatch.commands.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
