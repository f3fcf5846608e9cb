"""Memory that several ranks read and write directly: its interface, and the verbs over it."""
