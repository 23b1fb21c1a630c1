"""`python -m wsrelay` is the `wsrelay` command."""

from .cli.main import main

if __name__ == "__main__":
    main(prog_name="wsrelay")
