"""Text from an exported model, with ONNX Runtime and NumPy alone: always the most probable token.

    unrolled export RUN model.onnx
    python examples/onnx_generate.py model.onnx "The " 200

For tokens that are bytes or characters; taking a prompt apart into byte pairs needs a library for that.
"""

import json
import sys

import numpy as np

try:
    import onnxruntime
except ImportError:
    sys.exit("this example needs ONNX Runtime: pip install onnxruntime")

path, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
sizes, tokenizer = json.loads(metadata["sizes"]), json.loads(metadata["tokenizer"])
if tokenizer["name"] not in ("byte", "char"):
    sys.exit(f"the model's tokens are {tokenizer['name']}, and this script knows byte and char")
symbols = tokenizer.get("symbols")

read = [symbols.index(symbol) for symbol in prompt] if symbols else list(prompt.encode())
if "initial_state" in metadata:
    start = json.loads(metadata["initial_state"])
    h, c = (np.array(start[name], dtype=np.float32)[:, None] for name in "hc")
else:
    h, c = (
        np.zeros((sizes["layers"], 1, width), np.float32)
        for width in (sizes.get("proj", sizes["hidden"]), sizes["hidden"])
    )
written = []
while len(written) < count:
    x = np.array([read], dtype=np.int64)
    logits, h, c = session.run(["logits", "h_n", "c_n"], {"x": x, "h": h, "c": c})
    read = [int(logits[0, -1].argmax())]
    written += read
text = "".join(symbols[token] for token in written) if symbols else bytes(written).decode("utf-8", "replace")
print(prompt + text)
