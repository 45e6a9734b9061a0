"""`python -m queuert_py.cli …`, where the console script is not on the PATH; the supervisor starts its workers so."""

from queuert_py.cli.entry import main

if __name__ == "__main__":
    main()
