"""The evaluation plane: measures, with intervals."""
