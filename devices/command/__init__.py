"""The command line: one file for each subcommand, and one for how what it finds is shown."""
