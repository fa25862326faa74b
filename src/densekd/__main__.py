"""`python -m densekd`, and what torchrun and accelerate start: the `densekd` command."""

from __future__ import annotations

from densekd.cli import early

if __name__ == "__main__":
    early.install()

from densekd.cli.main import main

if __name__ == "__main__":
    main()
