"""The rows: finding, reading and checking them, and turning each into requests of an engine."""
