"""A viewer of runs and datasets in the browser: loopback only, no script, every page a URL with a
JSON twin."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def serve(
    path: Path,
    port: int | None,
    open_browser: bool,
    reviewer: str | None = None,
    other: Path | None = None,
) -> None:
    """Show a folder until it is interrupted; the URL goes to stdout. `reviewer`, `other`: see
    `server_of`.

    Raises:
        RunFolderError: the folder can't be shown.
        SettingsError: the port can't be had.
    """
    from .server import server_of

    server = server_of(path, port, reviewer, other)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    print(url, flush=True)
    print(
        "ctrl-c ends it; from another machine: ssh -L 7470:" + url[7:-1] + " HOST", file=sys.stderr
    )
    if open_browser and (
        sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        import webbrowser

        webbrowser.open(url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
