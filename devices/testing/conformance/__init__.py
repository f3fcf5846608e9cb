"""The conformance kit: every law that a backend must keep, each a check."""
