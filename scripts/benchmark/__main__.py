"""`python -m benchmark`."""

from .main import main

main()
