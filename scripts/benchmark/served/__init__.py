"""What the peers serve: an echo, a room in which all hear all, and a service that tells its PID."""
