"""`python -m capstan.cli` is `capstan`."""

from capstan.cli import main

main()
