"""Who the installed plugins are: a broken one is found out in a child process, and harms nobody else."""
