"""How a client's program tells what it found: a JSON line a step, to the stage and nobody else. The next step begins
when the stage has read it and says so with a line of its own."""

import json
import sys
import time
import traceback


def run(steps, found):
    """`found` maps the name of a step to a function without arguments. `again` waits until an outage is over."""
    for step in steps:
        name, _, wait = step.partition("@")
        if wait:
            time.sleep(float(wait))
        try:
            said = {"value": found[name]()}
        except BaseException as error:
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:4000]}
        print(json.dumps({"step": step, **said}), flush=True)
        sys.stdin.readline()
    sys.exit(0)
