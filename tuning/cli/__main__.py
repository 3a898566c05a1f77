"""``python -m tuning.cli``."""

from tuning.cli import main

if __name__ == "__main__":
    main()
