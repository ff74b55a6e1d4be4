"""A GGUF file as a folder that transformers and vLLM load. Run by the Python of vLLM's own environment.

`python convert.py MODEL.gguf FOLDER`. vLLM loads no GGUF by itself, and transformers refuses to save a model that
it still takes for quantized; so the dequantized weights are copied into a plain model of the same shape, in bfloat16.
"""

import importlib
import sys
from pathlib import Path

# Of vLLM's environment; this project's own has neither.
torch = importlib.import_module("torch")
transformers = importlib.import_module("transformers")


def convert(source: Path, folder: Path) -> None:
    """Write tokenizer, configuration and weights of the model in `source` into `folder`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(folder)
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    config.architectures = [type(quantized).__name__]
    plain = type(quantized)(config)
    missing, unexpected = plain.load_state_dict(quantized.state_dict(), strict=False)
    # An output matrix that is the input embeddings again may be named in one of the two alone.
    lacking = [name for name in missing if name != "lm_head.weight"]
    if lacking or unexpected:
        raise SystemExit(f"the model's weights do not fit its configuration: {lacking or unexpected}")
    plain.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
