"""Presents tokens to a gateway over HTTP and prints what it says: {name: [status, reason]}.

Reads JSON from stdin: `jwks`, `socket` of the engine, `tokens` by name; null stands for a request without one.
With `in_an_hour` the gateway's clock is ahead by more than a token lives.
"""

import datetime
import http.server
import json
import sys
import threading
import urllib.error
import urllib.request

import jwt.api_jwt

from gateway import DIRECT, Engine, Gateway, Judge, Keys, Log


class Upstream(http.server.BaseHTTPRequestHandler):
    """An engine that asks no questions."""

    def do_GET(self):
        if "Authorization" in self.headers:
            self.send_error(500, "the gateway handed a token on")
            return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def ask(url, token):
    headers = {} if token is None else {"Authorization": "Bearer " + token}
    try:
        with DIRECT.open(urllib.request.Request(url, headers=headers), timeout=10) as reply:
            return [reply.status, ""]
    except urllib.error.HTTPError as error:
        return [error.code, json.load(error)["error"]["message"]]


class Later(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=4000)


given = json.load(sys.stdin)
if given["in_an_hour"]:
    jwt.api_jwt.datetime = Later
upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=upstream.serve_forever, daemon=True).start()
judge = Judge("bigquery", Keys(given["jwks"]), Engine(given["socket"]))
gateway = Gateway("bigquery", "http://{}:{}".format(*upstream.server_address), judge, Log(None))
json.dump({name: ask(gateway.url + "/bigquery/v2/projects", token) for name, token in given["tokens"].items()}, sys.stdout)
