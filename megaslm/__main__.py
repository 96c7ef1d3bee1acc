"""`python -m megaslm`: what launchers start on every rank."""

from megaslm.cli import main

if __name__ == "__main__":
    main()
