"""Configuration files that are wrong, each with the paths of the problems it must give."""

MODEL = "model: {path: demo}\n"

# Text of a file, and the path of every problem it must give, in any order.
MALFORMED = {
    "empty": ("", ["file"]),
    "a list": ("- model\n", ["file"]),
    "bare text": ("hello", ["file"]),
    "broken syntax": ("model: {path: demo\nserver:\n", ["line 2, column 7"]),
    "tab indent": ("model:\n\tpath: demo\n", ["line 2, column 1"]),
    "unknown tag": (MODEL + "server: !!python/object:os.system {}\n", ["line 2, column 9"]),
    "control character": (MODEL + "server: {host: '\x01'}\n", ["file"]),
    "unhashable key": (MODEL + "? [a, b]\n: 1\n", ["line 2, column 3"]),
    "unending brackets": ("model: " + "[" * 5000, ["file"]),
    "anchor inside itself": (
        MODEL + "replicas: {sglang_args: {log_level: &a [*a]}}\n",
        ["replicas.sglang_args.log_level"],
    ),
    "key written twice": (MODEL + "server:\n  port: 1\n  port: 2\n", ["line 4"]),
    "written twice and wrong": (MODEL + "server:\n  port: 1\n  port: 0\n", ["line 4", "server.port"]),
    "no model": ("server: {port: 80}\n", ["model"]),
    "no model path": ("model: {dtype: auto}\n", ["model.path"]),
    "ambiguous path": ("model: {path: models}\n", ["model.path"]),
    "served under a name with a colon": ("model: {path: '/models/qwen:4'}\n", ["model.served_name"]),
    "open host without keys": (MODEL + "server: {host: 0.0.0.0}\n", ["server.host"]),
    "named host without keys": (MODEL + "server: {host: gateway.internal}\n", ["server.host"]),
    "service tiers that are none": (
        MODEL + "gateway: {priority_tier: gold, flex_tier: standard}\n",
        ["gateway.priority_tier"],
    ),
    "section is a value": ("model: demo\n", ["model"]),
    "section is null": (MODEL + "server:\n", ["server"]),
    "misspelt section": (MODEL + "sever: {port: 80}\n", ["sever"]),
    "misspelt key": (MODEL + "replicas: {tensor_paralel: 8, expert_parallel: 4}\n", ["replicas.tensor_paralel"]),
    "quoted number": (MODEL + "server: {port: '80'}\n", ["server.port"]),
    "fraction for a count": (MODEL + "replicas: {count: 1.5}\n", ["replicas.count"]),
    "yes for a name": ("model: {path: demo, served_name: yes}\n", ["model.served_name"]),
    "not a number": (MODEL + "server: {request_timeout_s: .nan}\n", ["server.request_timeout_s"]),
    "infinite": (MODEL + "server: {request_timeout_s: .inf}\n", ["server.request_timeout_s"]),
    "out of range": (
        MODEL + "server: {port: 70000, shutdown_grace_s: 15}\nreplicas: {count: 0}\n",
        ["server.port", "server.shutdown_grace_s", "replicas.count"],
    ),
    "unknown choice": (MODEL + "speculation: {method: medusa}\n", ["speculation.method"]),
    "trees on GPUs without FlashInfer": (
        MODEL + "replicas: {device: cuda}\nspeculation: {method: tree, draft_path: org/draft}\n",
        ["replicas.attention_backend"],
    ),
    "trees without a drafter": (MODEL + "speculation: {method: tree}\n", ["speculation.draft_path"]),
    "pipeline parallelism": (MODEL + "replicas: {pipeline_parallel: 2}\n", ["replicas.pipeline_parallel"]),
    "disaggregation": (MODEL + "prefill: {replicas: 2}\n", ["prefill"]),
    "adapters": ("model: {path: demo, lora_adapters: [a]}\n", ["model.lora_adapters"]),
    "images": ("model: {path: demo, image_input: true}\n", ["model.image_input"]),
    "refused arguments": (
        MODEL
        + "replicas: {sglang_args: {pp_size: 2, enable_lora: true, enable_multimodal: true, disaggregation_mode: x,"
        " speculative_accept_threshold_single: 0.5, attn_cp_size: 2, tp_size: 2, api_key: x, no_such: 1}}\n",
        [
            f"replicas.sglang_args.{name}"
            for name in (
                "pp_size",
                "enable_lora",
                "enable_multimodal",
                "disaggregation_mode",
                "speculative_accept_threshold_single",
                "attn_cp_size",
                "tp_size",
                "api_key",
                "no_such",
            )
        ],
    ),
    "a date for an argument": (
        MODEL + "replicas: {sglang_args: {log_level: 2026-01-01}}\n",
        ["replicas.sglang_args.log_level"],
    ),
    "ranks that don't divide": (
        MODEL + "replicas: {tensor_parallel: 8, nodes: 3, expert_parallel: 5, attention_data_parallel: 7}\n",
        ["replicas.nodes", "replicas.expert_parallel", "replicas.attention_data_parallel"],
    ),
    "all-to-all over some ranks": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 4, moe_all_to_all: deepep, max_running_requests: 8}\n",
        ["replicas.expert_parallel"],
    ),
    "rows beyond the dispatch buffer": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 8, attention_data_parallel: 8, moe_all_to_all: deepep,"
        " max_running_requests: 1032}\n",
        ["replicas.dispatch_rows_per_rank"],
    ),
    "rows unknown to the dispatch buffer": (
        MODEL + "replicas: {tensor_parallel: 8, expert_parallel: 8, moe_all_to_all: deepep}\n",
        ["replicas.max_running_requests"],
    ),
    "requests that don't share out": (
        MODEL + "replicas: {tensor_parallel: 4, attention_data_parallel: 4, max_running_requests: 6}\n",
        ["replicas.max_running_requests"],
    ),
    "cache below one request": (
        "model: {path: demo, context_tokens: 4096}\nreplicas: {kv_tokens: 1024}\n",
        ["replicas.kv_tokens"],
    ),
    "chunk that leaves a page open": (
        MODEL + "replicas: {page_tokens: 64, chunked_prefill_tokens: 100}\n",
        ["replicas.chunked_prefill_tokens"],
    ),
    "GPU features on a CPU": (
        "model: {path: demo, quantization: fp8, kv_dtype: fp8_e4m3}\n"
        "replicas: {device: cpu, moe_all_to_all: mori, attention_backend: fa3}\nspeculation: {method: dspark_native}\n",
        [
            "model.quantization",
            "model.kv_dtype",
            "replicas.moe_all_to_all",
            "replicas.attention_backend",
            "speculation.method",
        ],
    ),
    "run-time depth under attention-DP with all-to-all": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 8, attention_data_parallel: 8, moe_all_to_all: megamoe}\n"
        "speculation: {method: dspark_native, block_tokens: 5, verification: compact}\n",
        ["speculation.verification"],
    ),
    "DSpark under attention-DP with DeepEP": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 8, attention_data_parallel: 8, moe_all_to_all: deepep,"
        " max_running_requests: 64}\nspeculation: {method: dspark_native, block_tokens: 5}\n",
        ["replicas.moe_all_to_all"],
    ),
    "a ladder under attention-DP with all-to-all": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 8, attention_data_parallel: 8, moe_all_to_all: megamoe}\n"
        "speculation: {method: chain, draft_path: /d, block_tokens: 5}\n",
        ["replicas.moe_all_to_all"],
    ),
    "standalone without a draft, over groups": (
        MODEL + "replicas: {tensor_parallel: 2, attention_data_parallel: 2}\nspeculation: {method: standalone}\n",
        ["speculation.draft_path", "replicas.attention_data_parallel"],
    ),
    "draft without a method": (
        MODEL + "speculation: {draft_path: a/b, block_tokens: 3}\n",
        ["speculation.draft_path", "speculation.block_tokens"],
    ),
    "tables without a budget": (
        MODEL + "speculation: {method: dspark_native, step_cost_path: /a, calibration_path: /b}\n",
        ["speculation.step_cost_path", "speculation.calibration_path"],
    ),
    "shares without a planner, a planner without a ladder": (
        MODEL + "speculation: {method: standalone, draft_path: /d, live_shares: true, step_times_path: /a}\n",
        ["speculation.live_shares", "speculation.step_times_path"],
    ),
    "two planners over several groups": (
        MODEL + "replicas: {tensor_parallel: 2, attention_data_parallel: 2}\n"
        "speculation: {method: dspark_native, verification: compact, step_times_path: /a, step_cost_path: /b}\n",
        ["speculation.step_cost_path", "speculation.step_times_path"],
    ),
    "a planner of static rows": (
        MODEL + "speculation: {method: dspark_native, step_times_path: /a}\n",
        ["speculation.step_times_path"],
    ),
    "a stall without step times": (
        MODEL + "tiers: {0: {name: a, default: true, max_stall_ms: 50}}\n",
        ["tiers.0.max_stall_ms"],
    ),
    "shares without step times": (
        MODEL + "speculation: {method: chain, draft_path: a/b, live_shares: false}\n",
        ["speculation.live_shares"],
    ),
    "drawn drafts beside a lookup": (
        MODEL + "speculation: {method: tree, draft_path: a/b, prompt_lookup: true, accept_rule: ratio}\n",
        ["speculation.accept_rule"],
    ),
    "no default tier": (MODEL + "tiers: {1: {name: a}, 2: {name: b}}\n", ["tiers"]),
    "two default tiers of one name": (
        MODEL + "tiers: {1: {name: a, default: true}, 2: {name: a, default: true}}\n",
        ["tiers", "tiers.2.name"],
    ),
    "downgrades that lead nowhere": (
        MODEL
        + "tiers: {1: {name: a, default: true, on_full: downgrade}, 2: {name: b, downgrade_to: a},"
        " 3: {name: c, on_full: downgrade, downgrade_to: d}}\n",
        ["tiers.1.downgrade_to", "tiers.2.downgrade_to", "tiers.3.downgrade_to"],
    ),
    "a downgrade to more, and one to as much": (
        MODEL
        + "tiers: {1: {name: a, default: true, promise_tok_s: 80, on_full: downgrade, downgrade_to: b},"
        " 2: {name: b, promise_tok_s: 120, on_full: reject}, 3: {name: c, on_full: downgrade, downgrade_to: d},"
        " 4: {name: d}}\n",
        ["tiers.1.downgrade_to", "tiers.3.downgrade_to"],
    ),
    "downgrades in a circle, and to itself": (
        MODEL
        + "tiers: {1: {name: a, default: true, promise_tok_s: 80, on_full: downgrade, downgrade_to: b},"
        " 2: {name: b, promise_tok_s: 40, on_full: downgrade, downgrade_to: a},"
        " 3: {name: c, on_full: downgrade, downgrade_to: c}}\n",
        ["tiers.1.downgrade_to", "tiers.2.downgrade_to", "tiers.3.downgrade_to"],
    ),
    "a promise that yields": (
        MODEL + "tiers: {1: {name: a, default: true, promise_tok_s: 80, yields: true}}\n",
        ["tiers.1.yields"],
    ),
    "requests that can't be put back": (
        MODEL
        + "replicas: {tensor_parallel: 2, expert_parallel: 2, attention_data_parallel: 2}\n"
        + "tiers: {1: {name: a, default: true, yields: true}}\n",
        ["tiers.1.yields"],
    ),
    "shares, weights and caps out of range": (
        MODEL
        + "tiers: {1: {name: a, default: true, promise_tok_s: 0}, 2: {name: b, share_frac: 1.01},"
        " 3: {name: c, weight: 0}, 4: {name: d, cap_tokens: -1, on_full: wait}}\n",
        [
            "tiers.1.promise_tok_s",
            "tiers.2.share_frac",
            "tiers.3.weight",
            "tiers.4.cap_tokens",
            "tiers.4.on_full",
        ],
    ),
    "tier id out of range": (MODEL + "tiers: {64: {name: a, default: true}}\n", ["tiers.64"]),
    "no tier at all": (MODEL + "tiers: {}\n", ["tiers"]),
    "backoff that shrinks": (
        MODEL + "supervision: {restart_backoff_first_s: 9, restart_backoff_max_s: 3}\n",
        ["supervision.restart_backoff_first_s"],
    ),
    "wrong keys and broken rules together": (
        MODEL + "replicas: {tensor_parallel: 4, expert_parallel: 3, count: x}\nserver: {prot: 1}\n",
        ["replicas.expert_parallel", "replicas.count", "server.prot"],
    ),
}  # fmt: skip
