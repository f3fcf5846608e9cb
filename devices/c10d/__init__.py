"""The process group that torch knows as "devices"."""
