"""A cluster of nodes without I/O: links, leases, names and their copies, as pure machines.

Nothing here knows NATS or an event loop: `ports` says what the machines need, and their drivers
pass times and answers in. See "A cluster" in `docs/architecture.md`.
"""
