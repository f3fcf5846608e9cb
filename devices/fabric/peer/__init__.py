"""Memory of accelerators that the processes of a host map, as a fabric; what is told goes through the host's memory."""
