"""Numbers for a trained run: samples in shards, features, scores, reports."""
