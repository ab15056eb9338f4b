"""Codebooks and a transformer learn a painter's hand and paint from masks."""
