"""``python -m tokenclean``."""

from tokenclean.cli.main import main

if __name__ == "__main__":
    main()
