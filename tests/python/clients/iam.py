"""moto as IAM, for the test `libraries::moto`. Runs with the libraries of `requirements-clouds.txt`.

Prints one JSON object: where moto is, the keys of a person and the role that the person may assume and put policies on.
Then each line of stdin is one call with the keys in it, and each line of stdout what came of it:

    list        reads the bucket, which only the role may
    policies    the inline policies of the role, by name
    undo        removes the policy with that name
"""

import json
import pathlib
import sys
import tempfile

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from cloud_parts import BUCKET, REGION, ROLE, Clouds, free_port, role_arn


class Moto(Clouds):
    """Without azurite."""

    def __init__(self, folder):
        self.folder, self.parts, self.checks = folder, [], True
        self.s3 = ("127.0.0.1", free_port("127.0.0.1"))
        may = {"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Resource": role_arn(ROLE),
            "Action": ["iam:PutRolePolicy", "iam:ListRolePolicies", "iam:GetRolePolicy", "iam:DeleteRolePolicy"]}]}
        more = ("iam", "POST", "/", {"Action": "PutUserPolicy", "Version": "2010-05-08", "UserName": "person",
                                     "PolicyName": "policies", "PolicyDocument": json.dumps(may)})
        self.start_moto("127.0.0.1", [*self.setup_of_aws(), more])


def call(url, asked):
    def client(service):
        return boto3.client(service, endpoint_url=url, region_name=REGION, **asked["keys"],
                            config=Config(retries={"total_max_attempts": 1}, proxies={}))

    if asked["call"] == "list":
        client("s3").list_objects_v2(Bucket=BUCKET)
        return "listed"
    iam = client("iam")
    if asked["call"] == "policies":
        names = iam.list_role_policies(RoleName=ROLE)["PolicyNames"]
        return {name: iam.get_role_policy(RoleName=ROLE, PolicyName=name)["PolicyDocument"] for name in names}
    iam.delete_role_policy(RoleName=ROLE, PolicyName=asked["name"])
    return "removed"


def main():
    with tempfile.TemporaryDirectory(prefix="kci-") as folder:
        moto = Moto(pathlib.Path(folder))
        try:
            url = "http://{}:{}".format(*moto.s3)
            print(json.dumps({"url": url, "keys": moto.keys, "role": role_arn(ROLE)}), flush=True)
            for line in sys.stdin:
                try:
                    outcome = call(url, json.loads(line))
                except ClientError as error:
                    outcome = error.response["Error"]["Code"]
                print(json.dumps(outcome), flush=True)
        finally:
            moto.stop()


if __name__ == "__main__":
    main()
