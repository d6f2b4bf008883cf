"""What the demo showed, in a few lines; exits non-zero when it did not show it."""

import json
import pathlib
import sys


def main():
    place = pathlib.Path(sys.argv[1])
    if not (place / "summary.json").exists():
        sys.exit("demo failed: kfp-creds ended without running the pipeline")
    summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    rows = (place / "rows.txt").read_text(encoding="utf-8")
    requests = [json.loads(line) for line in (place / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    print("\nBigQuery's answer, as the pipeline printed it:\n")
    print("".join(f"    {line.strip()}\n" for line in rows.splitlines()))
    probes = [line for line in requests if line["verdict"] == "refused"]
    print(f"  {summary['passed']} requests passed, each with a token of one of {len(summary['containers'])} containers,")
    print(f"  as {', '.join(summary['accounts'])}; {len(probes)} without a valid token were refused.")
    faults = []
    if len(rows.splitlines()) != 3:
        faults.append("the report does not have three rows")
    # extract, three transforms, load
    if len(summary["containers"]) != 5:
        faults.append(f"{len(summary['containers'])} containers used their token, not 5")
    # The probes, and nothing else: none for want of a token inside the pipeline.
    if [line["why"] for line in probes] != ["no bearer token", "signed with a key that is not in the JWKS"] * 2:
        faults.append(f"refused: {[line['why'] for line in probes]}")
    if any(not line.get("container") for line in requests if line["verdict"] == "passed"):
        faults.append("a request passed that named no container")
    for fault in faults:
        print(f"demo failed: {fault}", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
