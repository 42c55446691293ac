"""The product's own engine: it runs the networks of `chiasm.models`."""
