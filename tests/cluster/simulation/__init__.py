"""A deterministic simulation of nodes: their real code in virtual time, one seed for everything.

`scheduler` decides what runs next, `loops` lets the nodes' coroutines run in its time, `system` is
their operating system (pipes, pidfds, templates), `workers` and `clients` are what the nodes serve,
`world` is one run, `books` has the promises that are checked, `mutations` shows that they can fail.
"""
