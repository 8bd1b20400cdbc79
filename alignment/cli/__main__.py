"""`python -m alignment.cli` is `attune`: for processes that Attune starts itself, wherever it is installed."""

from alignment.cli import main

main()
