"""Prints the objects of a manifest as a JSON list, if the official client's models know every field and type in it."""

import json
import sys

import kubernetes.client
import yaml

MODELS = {"Pod": "V1Pod", "ServiceAccount": "V1ServiceAccount"}


class Answer:
    """What the client's deserializer reads: a reply of a server."""

    def __init__(self, value):
        self.data = json.dumps(value)


client = kubernetes.client.ApiClient(kubernetes.client.Configuration())
with open(sys.argv[1], encoding="utf-8") as file:
    objects = list(yaml.safe_load_all(file))
for value in objects:
    read = client.deserialize(Answer(value), MODELS[value["kind"]])
    # A field that no model has is lost on the way, and one of another type changes or fails.
    written = client.sanitize_for_serialization(read)
    assert written == value, f"{value['kind']}: {json.dumps(written)} is not {json.dumps(value)}"
print(json.dumps(objects))
