"""Tests of the third floor: published numbers, tables, figures."""
