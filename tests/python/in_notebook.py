"""Runs cells in a kernel, as JupyterLab does, and prints what each gave as one JSON object.

    python in_notebook.py '["%load_ext kfp_creds", "%kfp_creds start --offline", …]'

An output is its text, its HTML or, for an error, its name and value.
"""

import json
import sys

import nbclient
import nbformat

cells = [nbformat.v4.new_code_cell(source) for source in json.loads(sys.argv[1])]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, timeout=180, kernel_name="python3", allow_errors=True).execute()


def said(output):
    if output.output_type == "stream":
        return {output.name: output.text}
    if output.output_type == "error":
        return {"error": f"{output.ename}: {output.evalue}"}
    return {"text": output.data.get("text/plain", ""), "html": output.data.get("text/html")}


print(json.dumps([[said(output) for output in cell.outputs] for cell in notebook.cells]))
