"""Our own front end: uvicorn with h11 and wsproto, and the applications that it serves."""
