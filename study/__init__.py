"""The harness: from a study question to rows of results."""
