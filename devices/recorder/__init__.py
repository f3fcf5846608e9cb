"""The flight recorder: what each rank called last, kept always, written down, read, and drawn."""
