"""Write the golden encodings anew, after a change of the wire that is meant."""

import json
from pathlib import Path

from examples_of_headers import EXAMPLES

from weft.client import wire

if __name__ == "__main__":
    golden = {header.kind: wire.encode(header).hex() for header in EXAMPLES}
    target = Path(__file__).parents[1] / "client" / "golden" / "v1.json"
    target.write_text(json.dumps(golden, indent=0) + "\n")
