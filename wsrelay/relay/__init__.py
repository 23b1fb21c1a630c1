"""The relay over ASGI: the middleware, and connections as the node knows them."""
