"""How verbs are made: schedules and their generators, local arithmetic, and the lowerings onto a communicator."""
