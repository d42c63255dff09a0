"""What the comparisons need beside pickledbd: told in one line if it is not there.

Imported before all else by whoever imports a peer; the underscore makes it sort first.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys

PACKAGES = {
    "redis": "redis",
    "hiredis": "hiredis",
    "pymemcache": "pymemcache",
    "diskcache": "diskcache",
    "lmdb": "lmdb",
    "sqlitedict": "sqlitedict",
    "UltraDict": "UltraDict==0.0.6",
    "atomics": "atomics",
    "psutil": "psutil",
    "matplotlib": "matplotlib",
}
"""For each module, how pip calls it; UltraDict needs the two after it for its shared lock."""

if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
    raise SystemExit(
        f"the comparisons need {', '.join(missing)}, which this Python does not have: "
        f"{sys.executable} -m pip install {' '.join(PACKAGES[name] for name in missing)}"
    )


def program(name: str) -> str:
    """The path of a server's program."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(
            f"the comparisons need {name}: apt-get install redis-server memcached "
            "(as services they are not needed: each is started here)"
        )
    return found
