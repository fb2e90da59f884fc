"""Run the `npn` command with `python -m npn`, or with `torchrun -m npn` on several processes."""

from npn.cli import app

if __name__ == "__main__":
    app()
