"""`python -m devices.testing NAME`: `devices conformance NAME`."""

from __future__ import annotations

import sys

from devices.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["conformance", *sys.argv[1:]]))
