"""The relay without I/O: a connection as a pure state machine, and what it parses."""
