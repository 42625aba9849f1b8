"""`python -m bigbatch`."""

from bigbatch.cli.app import main

if __name__ == "__main__":
    main()
