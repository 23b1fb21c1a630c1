"""One NATS server and three nodes on this machine, to see what a cluster does."""
