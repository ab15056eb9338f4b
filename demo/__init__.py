"""A painter of its own scenes, a stand-in annotator, and the whole flow run on them."""
