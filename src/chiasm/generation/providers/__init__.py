"""Models that are run elsewhere: each file translates a request into another server's words."""
