"""Runs a command at a terminal of its own and types what STEPS say: `typed.py STEPS COMMAND...`.

STEPS is JSON: `[[WAIT, KEYS], …]`, each with the text to wait for behind what was waited for before, or a number
of seconds, and the keys to press then. What came is printed, the exit code is the command's; 99 where a text did not come.
"""

import json
import os
import pty
import select
import sys
import time

LONGEST = 90


def main():
    steps, command = json.loads(sys.argv[1]), sys.argv[2:]
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(command[0], command)
    came, seen, open_, missed = b"", 0, True, None

    def read(until):
        nonlocal came, open_
        while open_ and (left := until - time.monotonic()) > 0 and select.select([terminal], [], [], left)[0]:
            try:
                piece = os.read(terminal, 4096)
            except OSError:  # the last one at the terminal left
                piece = b""
            open_ = bool(piece)
            came += piece
            return

    for wait, keys in steps:
        end = time.monotonic() + (LONGEST if isinstance(wait, str) else wait)
        while open_ and time.monotonic() < end:
            if isinstance(wait, str) and (at := came.find(wait.encode(), seen)) >= 0:
                seen = at + len(wait.encode())
                break
            read(end)
        else:
            if isinstance(wait, str):
                missed = wait
                break
        if not open_:
            missed = f"nothing: it ended before {keys!r} was typed"
            break
        os.write(terminal, keys.encode())
    if missed is not None:
        import signal

        print(f"did not come: {missed}")
        try:
            os.kill(child, signal.SIGTERM)
        except ProcessLookupError:
            pass
    end = time.monotonic() + LONGEST
    while open_ and time.monotonic() < end:
        read(end)
    sys.stdout.write(came.decode(errors="replace"))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 99 if missed is not None else code


sys.exit(main())
