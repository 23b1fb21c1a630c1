"""The WebSocket relay: pure machines (session, command, header, origins) and their drivers."""
