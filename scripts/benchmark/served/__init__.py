"""What the peers serve: an echo, a room whose members hear each other, and a service."""
