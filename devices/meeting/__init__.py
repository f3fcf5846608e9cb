"""How the ranks of a world find each other, and prove that they belong together."""
