"""Paintings, Label Studio, and the masks that people draw: the first stage, which the others build on."""
