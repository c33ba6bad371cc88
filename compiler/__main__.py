"""`python -m aigcc` is `aigcc`."""

from aigcc.cli import main

if __name__ == "__main__":
    main()
