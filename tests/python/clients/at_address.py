"""A client that looks at the metadata service's own address and nowhere else, in a network of its own where that address is the
proxy of one run. What it needs besides is carried to where it is.

    unshare --net python at_address.py '[["169.254.169.254", 80, "SOCKET"], …]' COMMAND…
"""

import json
import subprocess
import sys

from faults import METADATA
from stage import bridge, ip

ways, command = json.loads(sys.argv[1]), sys.argv[2:]
ip("address", "add", f"{METADATA[0]}/32", "dev", "lo")
ip("link", "set", "lo", "up")
for host, port, way_out in ways:
    bridge(port, way_out, host)
sys.exit(subprocess.run(command, check=False).returncode)
