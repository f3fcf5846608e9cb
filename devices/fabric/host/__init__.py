"""Memory that the processes of one host share, as a communicator: who meets there, how it is laid out, its verbs."""
