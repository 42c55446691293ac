"""The retrieval plane: embedders, stores, collections and search."""
