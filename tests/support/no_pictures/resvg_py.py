"""Stands before the real one on the path of processes that are started: no picture is drawn."""

raise ImportError("no pictures here: tests/unit/test_png.py draws them")
