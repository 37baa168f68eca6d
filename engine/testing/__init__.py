"""A local twin of a Tinker server: the official SDK's loops tested offline, on CPU, for nothing.

`local_server` starts one; the pytest plugin beside it makes fixtures of it. Importing either loads
no torch and no HTTP: those are for the process that serves.
"""

from .local import LocalServer, local_server

__all__ = ["LocalServer", "local_server"]
