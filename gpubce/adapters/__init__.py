"""Who calls: one module for each library or format, which says a loss in its words. None imports another."""
