"""`python -m bigbatch`."""

from bigbatch.cli.app import main

main()
