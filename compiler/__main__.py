"""Where `aigcc` starts: it imports nothing before it is ready for Ctrl-C."""

import sys


def main() -> None:
    """Run the command line; see `aigcc.cli.main`. Ctrl-C ends it with 130 and one line."""
    try:
        from aigcc.cli import main as run

        run()
    except KeyboardInterrupt:
        print("\nstopped; nothing half-written was left behind", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
