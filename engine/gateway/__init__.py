"""The HTTP gateway: the official SDK's routes, served by a client of the broker."""
