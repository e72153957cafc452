"""Reads result rows and published numbers; never runs anything."""
