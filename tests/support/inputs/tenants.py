"""A keys file for a deployment in a test, with its pepper, as settings of `--set`."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from sparktier.serving.gateway.tenants.keys import keyed_hash

OTHER_KEY = "sk-other"
PEPPER = "p" * 32


def tenant_settings(folder: Path, keys: Sequence[str], tiers: Sequence[str]) -> dict[str, str]:
    """Return settings with a tenant for each of `keys`, named by its place; each may use all of `tiers`."""
    (folder / "pepper").write_text(PEPPER)
    (folder / "pepper").chmod(0o600)
    hashes = [keyed_hash(PEPPER.encode(), key) for key in keys]
    tenants = {f"tenant-{place}": {"keys": [each], "tiers": list(tiers)} for place, each in enumerate(hashes)}
    (folder / "tenants.yaml").write_text(yaml.safe_dump({"tenants": tenants}))
    return {
        "gateway.keys_file": str(folder / "tenants.yaml"),
        "gateway.pepper_file": str(folder / "pepper"),
    }
