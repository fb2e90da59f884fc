"""`python -m npn` is the `npn` command, also under `torchrun -m npn`."""

from npn.cli import app

if __name__ == "__main__":
    app()
