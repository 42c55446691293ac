"""The HTTP server and its console."""
