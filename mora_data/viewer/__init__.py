"""A viewer of runs and datasets in the browser: loopback only, no script needed, every page a URL
and the same as JSON.

`server` runs it and knows the pages; `overview`, `prompts` and `pairs` make their values from the
data that `folder` and `provenance` read; templates/viewer/ draws them.
"""
