"""The operations plane."""
