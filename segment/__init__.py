"""A DeepLabV3 learns from the hand masks, labels the other paintings, and writes the shifted masks."""
