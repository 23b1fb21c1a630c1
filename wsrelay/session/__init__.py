"""The relay without I/O: one connection as a pure machine, and the headers and frames it reads."""
