"""What stands between one client and the program: passes bytes on, notes what is asked, makes faults.

`faults.py` for AWS and Azure. The condition of the run:

    normal, absent            nothing is changed
    refused                   on AWS, what the program says of a role that may not be assumed (on Azure it says itself that a
                              resource is not on the list)
    503                       for 3 s from the first of them, requests for credentials get what the program says when
                              STS or Microsoft Entra cannot be reached
    slow                      the first such reply takes 2 s, the longest that the program holds a request; then it has
                              what the next one asks for
    near                      the first credentials have 200 s left, later ones 660 s (AWS) or 600 s (Azure), the least
                              that is served
"""

import json
import re
import time

from faults import LATENCY, OUTAGE, Faults

LEFT = {"aws": (200, 660), "azure": (200, 600)}
ROLE = re.compile(r"/latest/meta-data/iam/security-credentials/[^/]+")


def reply(status, form, body):
    return (f"HTTP/1.1 {status}\r\nContent-Type: {form}\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode("ascii")


class CloudFaults(Faults):
    """`handed_out` has what identifies credentials: the key id of AWS, the token of Azure."""

    # The text of the last refusal, which a person should see.
    said = None

    def instead(self, kind):
        if self.condition == "slow" and kind:
            with self.lock:
                first, self.first = self.first is None, time.monotonic()
            if first:
                time.sleep(LATENCY)
        if self.condition == "refused" and kind and kind.startswith("aws"):
            return self.refusal(kind)
        if not (self.condition == "503" and kind):
            return None
        with self.lock:
            self.first = self.first or time.monotonic()
            if time.monotonic() - self.first >= OUTAGE:
                return None
        # As in tests/golden/aws/transient-*.http and tests/golden/azure/transient*.http.
        text, form = "try again", "application/json"
        if kind == "aws-imds":
            body, form = text, "text/plain"
        elif kind == "aws-container":
            body = json.dumps({"Code": "ServiceUnavailable", "Message": text})
        else:
            body = json.dumps({"statusCode": 503, "message": text, "error": "temporarily_unavailable",
                               "error_description": text})
        return reply("503 Service Unavailable", form, body)

    def refusal(self, kind):
        # As in tests/golden/aws/refused-*.http.
        self.said = "the role may not be assumed: sts:AssumeRole is missing"
        body = json.dumps({"Code": "AccessDenied", "Message": self.said}, separators=(",", ":"))
        return reply("200 OK" if kind == "aws-imds" else "403 Forbidden", "application/json", body)

    def changed(self, kind, top, body):
        said = json.loads(body) if body.startswith(b"{") else {}
        refused = re.match(rb"HTTP/1.1 [45]", top) and body.decode("utf-8", "replace")
        with self.lock:
            self.said = said.get("Message") or said.get("error_description") or refused or self.said
        if not kind:
            return top + body
        made = said.get("AccessKeyId") or said.get("access_token")
        if not made:
            return top + body
        first, later = LEFT[kind.partition("-")[0]]
        with self.lock:
            self.tokens += 1
            self.handed_out[made] = kind
            left = first if self.tokens == 1 else later
        if self.condition != "near":
            return top + body
        if kind == "azure":
            ends = int(time.time()) + left
            for name, value in (("expires_in", left), ("expires_on", ends)):
                said[name] = type(said[name])(value)
        else:
            said["Expiration"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + left))
        body = json.dumps(said).encode("ascii")
        return re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % len(body), top) + body

    @staticmethod
    def kind_of(request):
        """Whether it is for credentials, and in which form. A look at whether Azure is there has no `Metadata`."""
        target = request.split(b" ", 2)[1].decode("latin-1")
        path = target.partition("?")[0].rstrip("/")
        if path.endswith("/v2/credentials"):
            return "aws-container"
        if ROLE.search(path):
            return "aws-imds"
        if path.endswith("/msi/token"):
            return "azure"
        if path.endswith("/metadata/identity/oauth2/token") and re.search(rb"(?i)\r\nmetadata: *true", request):
            return "azure"
        return None
