"""Where data versions come from: each kind of source turns what an experiment names into a manifest."""
