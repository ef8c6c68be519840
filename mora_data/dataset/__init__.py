"""The dataset folder, its card, and the way to the Hub.

schemas   one pinned Arrow schema per config
configs   one pure function per config: a scored prompt -> its rows
folder    streams the rows into <config>/<split>-00000-of-0000N.parquet, all or nothing
card      README.md from the manifest
push      one commit and one tag
"""
