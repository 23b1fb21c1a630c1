"""A node's part in a cluster: its links to other nodes, their processes, clients and names."""
