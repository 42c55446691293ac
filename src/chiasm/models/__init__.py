"""The networks and their checkpoints: plain modules, one file a model."""
