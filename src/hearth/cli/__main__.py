"""`python -m hearth.cli` is the `hearth` command."""

from hearth.cli.main import main

if __name__ == "__main__":
    main()
