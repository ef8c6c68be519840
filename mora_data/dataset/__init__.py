"""The dataset folder, its card, and the way to the Hub.

schemas   one pinned Arrow schema per config, and the writer of its Parquet files
configs   one pure function per config: a scored prompt -> its rows
folder    streams the rows into <config>/<split>-00000-of-0000N.parquet, all or nothing
card      README.md from the manifest
papers    what lies beside: statistics, licence, citation, provenance, Croissant
privacy   no addresses, counts of personal data, a public copy without unsafe text
lint      checks before a byte leaves
export    one config in other formats
client    the folder of a name, here or on the Hub; the Hub's calls
push      what changed against another dataset; CHANGELOG.md; one commit and one tag
"""
